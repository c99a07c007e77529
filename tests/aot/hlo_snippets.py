"""HLO written by hand in the forms that XLA's compilers print it."""

# A loop of 12 iterations whose body gathers a weight in bfloat16 as a -start/-done
# pair, sums a gradient, and multiplies; as XLA for TPUs prints it, without
# known_trip_count. The counter starts at a copied constant and steps by 1.
LOOP = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[48,384])->f32[]}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%fused (param_0: bf16[64,384], param_1: bf16[384,384]) -> bf16[64,384] {
  %param_0 = bf16[64,384]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[384,384]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %dot = bf16[64,384]{1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), \
dim_labels=bf_io->bf, backend_config={"window_config":{"estimated_cycles":"999999"}}
}

%body (arg: (s32[], bf16[64,384], bf16[48,384], /*index=3*/f32[384])) -> (s32[], \
bf16[64,384], bf16[48,384], /*index=3*/f32[384]) {
  %arg = (s32[]{:T(128)}, bf16[64,384]{1,0:T(8,128)(2,1)S(1)}, \
bf16[48,384]{1,0:T(8,128)(2,1)}, /*index=3*/f32[384]{0:T(512)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %i.copy = s32[]{:T(128)S(6)} copy(%i)
  %next = s32[]{:T(128)} add(%i.copy, %one)
  %x = bf16[64,384]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%arg), index=1
  %w = bf16[48,384]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=2
  %g = f32[384]{0:T(512)} get-tuple-element(%arg), index=3
  %gather-start = (bf16[48,384]{1,0}, bf16[384,384]{1,0}) all-gather-start(%w), \
channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}, \
use_global_device_ids=true, metadata={op_name="jit(step)/block/attn/qkv/convert"}
  %gather-done = bf16[384,384]{1,0} all-gather-done(%gather-start)
  %fusion = bf16[64,384]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %gather-done), \
kind=kOutput, calls=%fused, metadata={op_name="jit(step)/block/attn/qkv/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %reduce = f32[384]{0:T(512)} all-reduce(%g), channel_id=2, replica_groups=[1,16]<=\
[16], to_apply=%add, metadata={op_name="jit(step)/transpose/block/norm1/sum"}
  ROOT %out = (s32[]{:T(128)}, bf16[64,384]{1,0}, bf16[48,384]{1,0}, \
/*index=3*/f32[384]{0}) tuple(%next, %fusion, %w, /*index=3*/%reduce)
}

%condition (arg.1: (s32[], bf16[64,384], bf16[48,384], /*index=3*/f32[384])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %arg.1 = (s32[]{:T(128)}, bf16[64,384]{1,0}, bf16[48,384]{1,0}, /*index=3*/f32[384]\
{0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (w.1: bf16[48,384], x.1: bf16[64,384], g.1: f32[384]) -> f32[] {
  %w.1 = bf16[48,384]{1,0:T(8,128)(2,1)} parameter(0)
  %x.1 = bf16[64,384]{1,0} parameter(1)
  %g.1 = f32[384]{0} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %zero.copy = s32[]{:T(128)} copy(%zero)
  %init = (s32[]{:T(128)}, bf16[64,384]{1,0}, bf16[48,384]{1,0}, /*index=3*/f32[384]\
{0}) tuple(%zero.copy, %x.1, %w.1, /*index=3*/%g.1)
  %while = (s32[]{:T(128)}, bf16[64,384]{1,0}, bf16[48,384]{1,0}, /*index=3*/f32[384]\
{0}) while(%init), condition=%condition, body=%body
  %last = f32[384]{0} get-tuple-element(%while), index=3
  ROOT %total = f32[]{:T(128)} reduce(%last, %zero), dimensions={0}, to_apply=%add, \
backend_config={"window_config":{"estimated_cycles":"70"}}
}
"""

# One gather in three pieces, each in a fusion that hides it; a sum of zero-padded
# shards of two dtypes; a sum fused with the slice of it; a kernel with and one without
# a cost estimate; permutes, all-to-all.
FUSED = """\
HloModule jit_step, is_scheduled=true

%start (p: f32[16,64]) -> f32[128,64] {
  %p = f32[16,64]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[128,64]{1,0} all-gather(%p), channel_id=7, \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, metadata={op_name="jit(step)/w"}
}

%piece (p.1: f32[16,64]) -> f32[128,64] {
  %p.1 = f32[16,64]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[128,64]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, metadata={op_name="jit(step)/w"}
}

%pad (zeros: bf16[96], shard: bf16[12], at: s32[]) -> bf16[96] {
  %zeros = bf16[96]{0} parameter(0)
  %shard = bf16[12]{0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %update = bf16[96]{0} dynamic-update-slice(%zeros, %shard, %at)
}

%all-reduce-scatter.3 (p.2: bf16[64,64]) -> bf16[8,64] {
  %p.2 = bf16[64,64]{1,0} parameter(0)
  %sum = bf16[64,64]{1,0} all-reduce(%p.2), channel_id=9, replica_groups=[1,8]<=[8], \
to_apply=%add
  %id = u32[] partition-id()
  ROOT %slice = bf16[8,64]{1,0} dynamic-slice(%sum, %id), dynamic_slice_sizes={8,64}
}

ENTRY %main (a: f32[16,64], b: bf16[12], c: f32[300], d: bf16[64,64], i: s32[]) -> \
f32[128,64] {
  %a = f32[16,64]{1,0} parameter(0)
  %b = bf16[12]{0} parameter(1)
  %c = f32[300]{0} parameter(2)
  %d = bf16[64,64]{1,0} parameter(3)
  %i = s32[] parameter(4)
  %f.1 = f32[128,64]{1,0} fusion(%a), kind=kCustom, calls=%start
  %f.2 = f32[128,64]{1,0} fusion(%a), kind=kOutput, calls=%piece
  %f.3 = f32[128,64]{1,0} fusion(%a), kind=kCustom, calls=%piece
  %z.1 = bf16[96]{0} broadcast(%i), dimensions={}
  %z.2 = f32[2400]{0} broadcast(%i), dimensions={}
  %padded.1 = bf16[96]{0} fusion(%z.1, %b, %i), kind=kLoop, calls=%pad
  %padded.2 = f32[2400]{0} dynamic-update-slice(%z.2, %c, %i)
  %gathered = (bf16[96]{0}, f32[2400]{0}) all-reduce(%padded.1, %padded.2), \
channel_id=8, replica_groups=[1,8]<=[8], to_apply=%add, metadata={op_name="jit(step)/n"}
  %scattered = bf16[8,64]{1,0} fusion(%d), kind=kCustom, calls=%all-reduce-scatter.3
  %permute = (bf16[64,64]{1,0}, bf16[64,64]{1,0}, u32[], u32[]) \
collective-permute-start(%d), channel_id=10, source_target_pairs={{0,1},{1,0}}
  %permuted = bf16[64,64]{1,0} collective-permute-done(%permute)
  %exchange = bf16[64,64]{1,0} all-to-all(%d), channel_id=11, \
replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(step)/tokens"}
  %kernel.1 = bf16[64,64]{1,0} custom-call(%d), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"4000000",\
"transcendentals":"0","bytes_accessed":"1000"}}}
  %kernel.2 = bf16[64,64]{1,0} custom-call(%d), custom_call_target="tpu_custom_call"
  ROOT %copy = f32[128,64]{1,0} copy(%f.3)
}
"""

# Three crops of ten taken, and added again; the third carries a figure.
ROWS = """\
HloModule jit_step, is_scheduled=true

%taken (p: bf16[10,50,64], i: s32[3,1]) -> bf16[3,50,64] {
  %p = bf16[10,50,64]{2,1,0} parameter(0)
  %i = s32[3,1]{1,0} parameter(1)
  ROOT %gather.1 = bf16[3,50,64]{2,1,0} gather(%p, %i), offset_dims={1,2}, \
collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, \
slice_sizes={1,50,64}
}

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%added (p.1: bf16[10,50,64], i.1: s32[3,1], u: bf16[3,50,64]) -> bf16[10,50,64] {
  %p.1 = bf16[10,50,64]{2,1,0} parameter(0)
  %i.1 = s32[3,1]{1,0} parameter(1)
  %u = bf16[3,50,64]{2,1,0} parameter(2)
  ROOT %scatter.1 = bf16[10,50,64]{2,1,0} scatter(%p.1, %i.1, %u), \
update_window_dims={1,2}, inserted_window_dims={0}, \
scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=%add
}

ENTRY %main (x.1: bf16[10,50,64], n: s32[3,1]) -> bf16[500,64] {
  %x.1 = bf16[10,50,64]{2,1,0} parameter(0)
  %n = s32[3,1]{1,0} parameter(1)
  %rows = bf16[3,50,64]{2,1,0} fusion(%x.1, %n), kind=kCustom, calls=%taken, \
backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  %rated = bf16[3,50,64]{2,1,0} fusion(%x.1, %n), kind=kLoop, calls=%taken, \
backend_config={"window_config":{"estimated_cycles":"500"}}
  %sums = bf16[10,50,64]{2,1,0} fusion(%x.1, %n, %rows), kind=kCustom, \
calls=%added
  %free = bf16[500,64]{1,0} bitcast(%sums)
  ROOT %flat = bf16[500,64]{1,0} reshape(%sums)
}
"""
