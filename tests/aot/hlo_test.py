import hlo_snippets
import pytest

from dinov2_jax.aot import hlo


def test_shapes_opcodes_and_operands():
    module = hlo.parse(hlo_snippets.LOOP)
    assert module.entry == "main"
    body = module.computations["body"]
    start = body.instructions["gather-start"]
    assert start.opcode == "all-gather-start"
    assert start.operands == ("w",)
    assert start.arrays == (
        hlo.Array("bf16", (48, 384)),
        hlo.Array("bf16", (384, 384)),
    )
    assert start.arrays[1].num_bytes == 384 * 384 * 2
    assert start.op_name == "jit(step)/block/attn/qkv/convert"
    assert body.root.operands == ("next", "fusion", "w", "reduce")
    assert hlo.Array("f32", ()).num_bytes == 4


def test_short_form_of_tuple_elements():
    """As XLA of jax 0.12 writes them."""
    module = hlo.parse(
        "ENTRY %main (p: f32[2]) -> f32[2] {\n"
        "  %p = f32[2]{0} parameter(0)\n"
        "  %both = (f32[2]{0}, bf16[3]{0}) fusion(%p), kind=kLoop, calls=%f\n"
        "  ROOT %sum = bf16[3]{0} negate(%both#1)\n"
        "}\n"
    )
    main = module.computations["main"]
    element = main.instructions[main.root.operands[0]]
    assert (element.opcode, element.operands) == ("get-tuple-element", ("both",))
    assert element.arrays == (hlo.Array("bf16", (3,)),)


def test_a_loop_that_counts_to_a_constant():
    executions = hlo.parse(hlo_snippets.LOOP).executions
    # What a fusion or a reduction calls is a part of it.
    assert executions == {"main": 1, "body": 12, "condition": 12}


@pytest.mark.parametrize(
    "old, new, trips",
    [
        ("constant(12)", "constant(13)", 13),
        ("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[] constant(4)", 8),
        ("%one = s32[]{:T(128)} constant(1)", "%one = s32[] constant(5)", 3),
        ("direction=LT", "direction=LE", 13),
        (
            "body=%body\n",
            'body=%body, backend_config={"known_trip_count":{"n":"40"}}\n',
            40,
        ),
    ],
)
def test_trip_counts(old, new, trips):
    assert old in hlo_snippets.LOOP
    module = hlo.parse(hlo_snippets.LOOP.replace(old, new))
    assert module.executions["body"] == trips


def test_a_loop_without_a_constant_bound_is_refused():
    text = hlo_snippets.LOOP.replace("constant(12)", "parameter(1)")
    with pytest.raises(ValueError, match="trip count of while"):
        _ = hlo.parse(text).executions


def test_nested_loops_multiply_and_branches_count():
    text = """\
HloModule m

%inner_body (a: s32[]) -> s32[] {
  ROOT %a = s32[] parameter(0)
}

%outer_body (b: s32[]) -> s32[] {
  %b = s32[] parameter(0)
  ROOT %w = s32[] while(%b), condition=%cond, body=%inner_body, \
backend_config={"known_trip_count":{"n":"3"}}
}

%cond (c: s32[]) -> pred[] {
  %c = s32[] parameter(0)
  ROOT %p = pred[] constant(true)
}

%left (d: s32[]) -> s32[] {
  ROOT %d = s32[] parameter(0)
}

ENTRY %main (e: s32[]) -> s32[] {
  %e = s32[] parameter(0)
  %o = s32[] while(%e), condition=%cond, body=%outer_body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %s = s32[] conditional(%e, %o, %o), branch_computations={%left, %left}
}
"""
    executions = hlo.parse(text).executions
    assert executions["outer_body"] == 5
    assert executions["inner_body"] == 15
    assert executions["cond"] == 5 + 15
    assert executions["left"] == 2


def test_asynchronous_operations_count_once():
    text = """\
HloModule m

%gather (a: f32[4]) -> f32[32] {
  %a = f32[4]{0} parameter(0)
  ROOT %g = f32[32]{0} all-gather(%a), channel_id=1, replica_groups=[1,8]<=[8]
}

ENTRY %main (b: f32[4]) -> f32[32] {
  %b = f32[4]{0} parameter(0)
  %s = ((f32[4]{0}), f32[32]{0}, u32[]) async-start(%b), calls=%gather
  %u = ((f32[4]{0}), f32[32]{0}, u32[]) async-update(%s), calls=%gather
  ROOT %d = f32[32]{0} async-done(%u), calls=%gather
}
"""
    assert hlo.parse(text).executions == {"main": 1, "gather": 1}
