"""Every field of a run with its default, unit and source.

The values are the reference's `ssl_default_config.yaml` unless a comment says
otherwise. Other files in this folder call `get_config()` and state only what differs.
Override any field on the command line: `--config.optim.base_lr=1e-3`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the default configuration, locked against unknown fields."""
    c = config_dict.ConfigDict()
    c.seed = 0

    c.data = config_dict.ConfigDict()
    # auto (by what `path` is) | folder | manifest | glob | array_record | webdataset |
    # tfds | photos (embedded, needs nothing); see docs/data.md.
    c.data.source = "auto"
    c.data.path = ""  # folder, file or pattern; tfds: the data_dir
    # Several sources instead of `path`: (("/data/a", 3.0), ("/data/b*.tar", 1.0)) shows
    # three images of the first for one of the second, and each of all once a pass.
    c.data.mixture = ()
    c.data.tfds_name = ""  # tfds: for example "imagenet2012:5.1.0"
    c.data.tfds_split = "train"
    c.data.workers = 8  # loader processes per host; 0 loads in the main process
    c.data.prefetch = 2  # finished batches kept per worker
    # Seconds without a batch after which a run ends and names the image that hangs; 0:
    # it waits for ever.
    c.data.timeout = 600.0
    c.data.max_bad_share = 0.5  # stop when more than this share of images is unreadable
    c.data.max_pixels = 178_956_970  # larger images are refused unread; Pillow's limit
    # Turn images upright as cameras mark them; the reference ignores the mark (False).
    c.data.exif_orientation = True
    # Of 16-bit and float pixels: (low, high) becomes 0..255; (): the range of the type.
    c.data.value_range = ()
    # Per channel, of values in [0, 1]; (): ImageNet's, for 3 channels. Of your images:
    # python -m dinov2_jax.data stats PATH
    c.data.mean = ()
    c.data.std = ()

    # device: the host decodes, cuts and resizes, and the step augments; host: all of it
    # there, with the reference's own arithmetic, at a quarter of the images a second.
    c.data.augmentation = "device"

    c.crops = config_dict.ConfigDict()
    # What happens to a crop: rgb (the reference's) | gray | multispectral | histology.
    c.crops.policy = "rgb"
    # Beside the policy; None: what it says. Probabilities, and strengths up to 1.
    c.crops.flip_probability = config_dict.placeholder(float)
    c.crops.vertical_flip_probability = config_dict.placeholder(float)
    c.crops.quarter_turn_probability = config_dict.placeholder(float)
    c.crops.jitter_probability = config_dict.placeholder(float)
    c.crops.brightness = config_dict.placeholder(float)
    c.crops.contrast = config_dict.placeholder(float)
    c.crops.saturation = config_dict.placeholder(float)
    c.crops.hue = config_dict.placeholder(float)  # up to 0.5, half a turn
    c.crops.grayscale_probability = config_dict.placeholder(float)
    c.crops.solarize_probability = config_dict.placeholder(float)  # of global crop 2
    c.crops.global_crops_size = 224  # px
    c.crops.global_crops_scale = (0.32, 1.0)  # share of the image's area
    c.crops.local_crops_number = 8
    c.crops.local_crops_size = 96  # px; 98 with patch 14
    c.crops.local_crops_scale = (0.05, 0.32)
    # "reference": probabilities 0.0 / 0.9 / 0.5 (view 1 / view 2 / locals), which the
    # reference and the released weights really use; "intended": 1.0 / 0.1 / 0.5;
    # "none": no crop is blurred.
    c.crops.blur = "reference"

    c.model = config_dict.ConfigDict()
    c.model.arch = "vit_large"  # vit_small | vit_base | vit_large | vit_giant2 | custom
    # Set by arch unless it is "custom".
    c.model.embed_dim = 0
    c.model.depth = 0
    c.model.num_heads = 0
    c.model.patch_size = 16
    c.model.in_chans = 3
    c.model.ffn_layer = "mlp"  # mlp (exact GELU) | swiglufused
    c.model.ffn_ratio = 4.0
    c.model.qkv_bias = True
    c.model.proj_bias = True
    c.model.ffn_bias = True
    c.model.layerscale = 1e-5  # initial gamma; 0 builds no LayerScale
    c.model.num_register_tokens = 0  # 0 | 4
    c.model.interpolate_offset = 0.1  # 0.0 together with antialias for register models
    c.model.interpolate_antialias = False
    c.model.drop_path_rate = 0.3
    c.model.drop_path_uniform = (
        True  # False: linear from 0 to drop_path_rate over depth
    )
    c.model.dtype = "auto"  # matmuls: float32 on the CPU, bfloat16 on accelerators
    # auto (the fastest) | xla | by_image (CPU) | cudnn | pallas_tpu | pallas_gpu
    c.model.attention = "auto"
    # What the backward pass computes again: none | selective (norms and activations:
    # 0.6 of the memory, hardly any time) | full (a tenth of it, a quarter more time).
    c.model.remat = "none"
    # Blocks per iteration of the scan. All of them (the depth) are faster than 1 on v5p
    # and v6e, two are slower, by the compiler's figures: docs/performance.md.
    c.model.scan_unroll = 1

    # Weights to start from instead of random ones; a checkpoint in the workdir goes
    # before them. The model must be theirs; position embeddings are resampled.
    c.init = config_dict.ConfigDict()
    # "": from scratch. A released name such as dinov2_vits14, a .pth (backbone or
    # training checkpoint), .safetensors, a folder of Hugging Face or timm, a workdir, a
    # checkpoint or an export of this project.
    c.init.source = ""
    c.init.which = ""  # teacher | student of what holds both; "": the teacher
    # fresh: drawn from the seed (released weights have none); loaded: they must have
    # the sizes of `dino` and `ibot` below. Student and teacher start alike.
    c.init.heads = "fresh"
    # Steps at the start at which the backbone rests (`backbone_lr` is 0), of student
    # and teacher, while heads learn that know nothing yet.
    c.init.heads_only_steps = 0

    c.dino = config_dict.ConfigDict()
    c.dino.loss_weight = 1.0
    c.dino.head_n_prototypes = 65536
    c.dino.head_bottleneck_dim = 256
    c.dino.head_nlayers = 3
    c.dino.head_hidden_dim = 2048
    c.dino.koleo_loss_weight = 0.1

    c.ibot = config_dict.ConfigDict()
    c.ibot.loss_weight = 1.0
    c.ibot.mask_sample_probability = 0.5
    c.ibot.mask_ratio_min_max = (0.1, 0.5)
    c.ibot.separate_head = False  # False: the DINO head serves both
    c.ibot.head_n_prototypes = 65536
    c.ibot.head_bottleneck_dim = 256
    c.ibot.head_nlayers = 3
    c.ibot.head_hidden_dim = 2048

    c.train = config_dict.ConfigDict()
    c.train.batch_size = 2048  # images per step over all devices; reference: 32 x 64
    # Images per group, the reference's batch per GPU: KoLeo neighbours, the drop-path
    # subset and the mask ratios live inside a group; devices divide the groups.
    c.train.group_size = 64
    c.train.steps = 125_000  # reference: 100 epochs x 1250
    c.train.centering = "centering"  # centering | sinkhorn_knopp
    # Steps in a row whose loss is not finite (they are skipped), or half as much again
    # as at the start, before the run goes back to its last checkpoint and leaves out
    # the batches since; and how often it may, before it stops.
    c.train.max_nonfinite_steps = 5
    c.train.max_rollbacks = 3
    # Seconds in which nothing is finished before the process ends with all stacks, to
    # be started again (compilation and evaluation get four times as long); 0: never.
    c.train.hang_timeout = 1800.0

    c.teacher = config_dict.ConfigDict()
    c.teacher.momentum_teacher = 0.992
    c.teacher.final_momentum_teacher = 1.0
    c.teacher.warmup_teacher_temp = 0.04
    c.teacher.teacher_temp = 0.07
    c.teacher.warmup_teacher_temp_steps = 37_500  # reference: 30 epochs x 1250

    c.optim = config_dict.ConfigDict()
    c.optim.name = "adamw"  # a key of `optimizer.DIRECTIONS`
    c.optim.base_lr = 0.004  # at batch 1024; scaled by sqrt(batch / 1024)
    c.optim.min_lr = 1e-6  # not scaled
    c.optim.warmup_steps = 12_500  # reference: 10 epochs x 1250
    c.optim.weight_decay = 0.04
    c.optim.weight_decay_end = 0.4
    c.optim.clip_grad = 3.0  # per submodule; 0 turns clipping off
    c.optim.freeze_last_layer_steps = 1250  # reference: 1 epoch
    c.optim.patch_embed_lr_mult = 0.2
    c.optim.layerwise_decay = 0.9
    c.optim.adamw_beta1 = 0.9
    c.optim.adamw_beta2 = 0.999

    c.mesh = config_dict.ConfigDict()
    # Copies of the state (HSDP), and devices that share one; 0: what the other leaves.
    # Both 0: a copy for each TPU slice or NVLink domain, whose gathers stay on its fast
    # links; fsdp is then its size.
    c.mesh.replica = 0
    c.mesh.fsdp = 0
    # What the run must have, or it does not start; 0: whatever there is.
    c.mesh.processes = 0
    c.mesh.devices = 0
    # Seconds without a sign of life from one process, after which all others end.
    c.mesh.heartbeat_timeout = 30

    c.checkpoint = config_dict.ConfigDict()
    c.checkpoint.every = 3750  # steps; reference: 3 epochs
    # Also when the last one is so many minutes ago; 0: never. Where the loss blows up,
    # which batches a run leaves out then depends on the clock.
    c.checkpoint.minutes = 10.0
    c.checkpoint.keep_last = 3
    c.checkpoint.keep_every = 0  # also keep every multiple of this step; 0: none

    c.log = config_dict.ConfigDict()
    c.log.every = 10  # steps
    c.log.tensorboard = True

    # k-NN of the teacher's class token. The photos source brings its own split;
    # elsewhere name two folders whose sub-folders are the labels, or what else
    # `data.path` takes and has labels, such as '/data/val/**/*.npy'
    c.evaluation = config_dict.ConfigDict()
    # Steps; 0: only at the end. A run from other weights is measured at step 0 too.
    c.evaluation.every = 12_500
    c.evaluation.train_path = ""
    c.evaluation.val_path = ""
    c.evaluation.photos_split = "val"  # held-out tiles of the photos source: val | test
    c.evaluation.max_images = 10_000  # of each set, evenly spaced; 0: all
    c.evaluation.resize_size = 256  # px of the short side, bicubic, before the crop
    c.evaluation.image_size = 224  # px of the central crop
    c.evaluation.picture_size = 448  # px of the photographs in pca.png
    c.evaluation.batch_size = 64
    c.evaluation.knn_k = (10, 20)  # `knn/top1` is the first
    c.evaluation.knn_temperature = 0.07
    c.lock()
    return c
