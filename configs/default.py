"""Every field of a run with its default, unit and source.

Values are those of the reference's `ssl_default_config.yaml` unless a comment says
otherwise. The other files in this folder call `get_config()` and state only what
differs.
Override any field on the command line: `--config.optim.base_lr=1e-3`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Return the default configuration, locked against unknown fields."""
    c = config_dict.ConfigDict()
    c.seed = 0  # of weights, masks, augmentation, drop path and the order of images

    c.data = config_dict.ConfigDict()
    # auto (detected from `path`) | folder | manifest | glob | array_record |
    # webdataset | huggingface | tfds | photos (embedded, needs nothing); see
    # docs/data.md.
    c.data.source = "auto"
    c.data.path = ""  # folder, file or pattern; tfds: the data_dir
    # Several weighted sources instead of `path`: (("/data/a", 3.0), ("/data/b*.tar",
    # 1.0)) shows three images of the first for each one of the second. A pass shows
    # every image at least once.
    c.data.mixture = ()
    c.data.tfds_name = ""  # tfds: for example "imagenet2012:5.1.0"
    c.data.tfds_split = "train"  # tfds: name of the split
    c.data.workers = 8  # loader processes per training process; 0: it loads itself
    c.data.prefetch = 2  # finished batches kept per worker
    # Seconds without a batch after which the run ends and names the image that hangs;
    # 0: never.
    c.data.timeout = 600.0
    c.data.max_bad_share = 0.5  # stop if more than this share of images is unreadable
    c.data.max_pixels = 178_956_970  # larger images are not decoded; Pillow's limit
    # Rotate images upright by their EXIF tag; the reference ignores it (False).
    c.data.exif_orientation = True
    # 16-bit and float pixels: (low, high) maps to 0..255; (): the range of the type.
    c.data.value_range = ()
    # Mean and standard deviation per channel, for values in [0, 1]; (): ImageNet's, for
    # 3 channels. To measure those of your images: python -m dinov2_jax.data stats PATH
    c.data.mean = ()
    c.data.std = ()

    # device: the host decodes, crops and resizes, the device augments. host: the host
    # does everything with the reference's arithmetic, at a quarter of the images/s.
    c.data.augmentation = "device"

    c.crops = config_dict.ConfigDict()
    # Augmentation policy: rgb (the reference's) | gray | multispectral | histology.
    c.crops.policy = "rgb"
    # Overrides of the policy; None: its value. Probabilities and strengths in [0, 1].
    c.crops.flip_probability = config_dict.placeholder(float)
    c.crops.vertical_flip_probability = config_dict.placeholder(float)
    c.crops.quarter_turn_probability = config_dict.placeholder(float)
    c.crops.jitter_probability = config_dict.placeholder(float)
    c.crops.brightness = config_dict.placeholder(float)
    c.crops.contrast = config_dict.placeholder(float)
    c.crops.saturation = config_dict.placeholder(float)
    c.crops.hue = config_dict.placeholder(float)  # at most 0.5, half a turn
    c.crops.grayscale_probability = config_dict.placeholder(float)
    c.crops.solarize_probability = config_dict.placeholder(float)  # of global crop 2
    c.crops.global_crops_size = 224  # px
    c.crops.global_crops_scale = (0.32, 1.0)  # share of the image's area
    c.crops.local_crops_number = 8  # per image
    c.crops.local_crops_size = 96  # px; 98 with patch 14
    c.crops.local_crops_scale = (0.05, 0.32)  # share of the image's area
    # Several resolutions in one run: ((global px, local px, share of the steps), ...),
    # one of them a step; the two sizes above are then the largest. (): those two alone.
    c.crops.sizes = ()
    # Blur probabilities of global crop 1 / global crop 2 / local crops. reference:
    # 0.0 / 0.9 / 0.5, which the reference and the released weights really use;
    # intended: 1.0 / 0.1 / 0.5; none: no crop is blurred.
    c.crops.blur = "reference"

    c.model = config_dict.ConfigDict()
    c.model.arch = "vit_large"  # vit_small | vit_base | vit_large | vit_giant2 | custom
    # Width, blocks and attention heads for arch "custom"; other archs set them.
    c.model.embed_dim = 0
    c.model.depth = 0
    c.model.num_heads = 0
    c.model.patch_size = 16  # px
    c.model.in_chans = 3  # channels of the images
    c.model.ffn_layer = "mlp"  # mlp (exact GELU) | swiglufused
    c.model.ffn_ratio = 4.0  # hidden width of the FFN over embed_dim
    # Biases of attention's two projections and of the FFN.
    c.model.qkv_bias = True
    c.model.proj_bias = True
    c.model.ffn_bias = True
    c.model.layerscale = 1e-5  # initial gamma; 0 builds no LayerScale
    c.model.num_register_tokens = 0  # 0 | 4
    # Resampling of position embeddings; released models with registers: 0.0 and True.
    c.model.interpolate_offset = 0.1
    c.model.interpolate_antialias = False
    c.model.drop_path_rate = 0.3  # share of samples that skip a residual branch
    # True: the same rate in all blocks; False: linear from 0 to drop_path_rate.
    c.model.drop_path_uniform = True
    c.model.dtype = "auto"  # of matmuls; auto: float32 on CPUs, bfloat16 elsewhere
    # Form of the blocks: plain | folded (norms and LayerScale folded into the weights:
    # the same up to rounding, and faster).
    c.model.block = "folded"
    # Kernel: auto (the fastest) | xla | by_image, by_block (CPU) | cudnn | pallas_tpu |
    # pallas_gpu
    c.model.attention = "auto"
    # What the backward pass recomputes: none | selective (norms and activations; 0.6 of
    # the memory, hardly any time) | full (a tenth of the memory, a quarter more time).
    c.model.remat = "none"
    # Blocks per iteration of the scan. On v5p and v6e the full depth is faster than 1
    # and 2 is slower, by the compiler's estimate: docs/performance.md.
    c.model.scan_unroll = 1

    # Weights to start from instead of random ones. A checkpoint in the workdir takes
    # precedence. `model` must describe them; position embeddings are resampled.
    c.init = config_dict.ConfigDict()
    # "": from scratch. Else a released name such as dinov2_vits14, a .pth (backbone or
    # training checkpoint), .safetensors, a Hugging Face or timm folder, or a workdir,
    # checkpoint or export of this project.
    c.init.source = ""
    c.init.which = ""  # teacher | student, if there are both; "": the teacher
    # fresh: random heads (released weights have none); loaded: heads of the sizes that
    # `dino` and `ibot` give below. Student and teacher start from the same.
    c.init.heads = "fresh"
    # Steps at the start in which only the heads learn: `backbone_lr` is 0, and the
    # backbones of student and teacher do not change.
    c.init.heads_only_steps = 0

    # A frozen teacher instead of the student's EMA, which is then only the product.
    c.distill = config_dict.ConfigDict()
    # "": none. Else anything that `init.source` takes; to plan, also the .py config of
    # a teacher.
    c.distill.source = ""
    c.distill.which = ""  # teacher | student, if there are both; "": the teacher
    # prototypes: the losses of pretraining, for teachers with heads. features:
    # regression of class and patch tokens, for any teacher.
    c.distill.objective = "prototypes"
    # Patches that the student learns from: all | masked, where `ibot` would mask them,
    # though the student sees every patch.
    c.distill.patches = "all"
    c.distill.patch_share = 1.0  # of all patches, drawn anew in each step
    # Teacher views that a global crop of the student is paired with: other | same |
    # both. The objective "features" takes the same.
    c.distill.views = "other"
    # Side of the global crops that the teacher sees, px; 0: as many patches as the
    # student's. Another grid of patches is resized to the student's.
    c.distill.teacher_size = 0
    # Several students of one teacher in one program: (("small",
    # "model.arch=vit_small"), ("base", "model.arch=vit_base optim.base_lr=5e-4")).
    c.distill.students = ()
    c.distill.features = config_dict.ConfigDict()
    c.distill.features.cls_weight = 1.0  # weight of the class token's loss
    c.distill.features.patch_weight = 1.0  # weight of the patches' loss
    c.distill.features.loss = "mse"  # mse | cosine
    # Scale of the targets, whose mean is 0: global (one for all channels) | channel |
    # none (as they are).
    c.distill.features.standardize = "global"
    c.distill.features.head = "linear"  # linear | mlp
    c.distill.features.calibration_images = 4096  # first images, measured for the scale

    c.dino = config_dict.ConfigDict()
    c.dino.loss_weight = 1.0  # 0 turns the DINO loss off
    c.dino.head_n_prototypes = 65536  # outputs of the head, K
    c.dino.head_bottleneck_dim = 256  # width before the prototypes
    c.dino.head_nlayers = 3  # linear layers before the prototypes
    c.dino.head_hidden_dim = 2048  # width of the layers between
    # Last batches whose class tokens Sinkhorn-Knopp balances with the new ones, for
    # batches that are small beside the number of prototypes; 0: none.
    c.dino.sinkhorn_queue = 0
    c.dino.koleo_loss_weight = 0.1  # 0 turns KoLeo off
    # Factor on the pairs with local crops; DINOv3's Gram phase has 0.5.
    c.dino.local_loss_weight = 1.0

    c.ibot = config_dict.ConfigDict()
    c.ibot.loss_weight = 1.0  # 0 turns the iBOT loss off
    c.ibot.sinkhorn_queue = 0  # the same for masked patches
    c.ibot.mask_sample_probability = 0.5  # share of global crops that are masked
    c.ibot.mask_ratio_min_max = (0.1, 0.5)  # share of the patches of a masked crop
    c.ibot.separate_head = False  # False: the DINO head serves both
    # Sizes of the separate head, as those of `dino`.
    c.ibot.head_n_prototypes = 65536
    c.ibot.head_bottleneck_dim = 256
    c.ibot.head_nlayers = 3
    c.ibot.head_hidden_dim = 2048

    # The objective "coding_rate" alone; values of SimDINO (arXiv 2502.10385).
    c.coding_rate = config_dict.ConfigDict()
    c.coding_rate.weight = 1.0  # factor of the coding rate, besides the paper's gamma
    # Distance between features of unit length up to which they count as equal.
    c.coding_rate.eps = 0.05
    # Gram anchoring (DINOv3 paper, section 4), for long trainings whose patch features
    # decay: docs/gram.md.
    c.gram = config_dict.ConfigDict()
    c.gram.loss_weight = 0.0  # 0 turns it off; DINOv3: 2.0
    # The first Gram teacher. "": the run's own EMA at step `start`; else anything that
    # `init.source` accepts, of this architecture.
    c.gram.source = ""
    c.gram.start = 0  # first step with the loss
    # The EMA replaces the Gram teacher this many steps after `start`, and again after
    # as many, `refreshes` times in all.
    c.gram.refresh_every = 10_000
    c.gram.refreshes = 3
    # Side of the Gram teacher's crops over that of the student's global crops. 1 costs
    # a forward pass on them; DINOv3's best is 2, for four times that and larger crops
    # from the host.
    c.gram.scale = 1.0
    # Its crops are flipped as the student's, but keep their colours and are not
    # blurred; needs data.augmentation "device". False: the student's own crops.
    c.gram.undistorted = True

    c.train = config_dict.ConfigDict()
    c.train.batch_size = 2048  # images per step on all devices; reference: 32 x 64
    # Images per group, the reference's batch per GPU. KoLeo neighbours, drop-path
    # subsets and mask ratios stay inside a group. Devices divide the groups.
    c.train.group_size = 64
    # Parts in which each device computes its groups, one after the other: the memory of
    # one part, the same numbers. Devices times parts divide the groups.
    c.train.micro_batches = 1
    c.train.steps = 125_000  # reference: 100 epochs x 1250
    # prototypes: DINO's and iBOT's cross-entropies | coding_rate: SimDINO's distances,
    # whose heads end at the bottleneck; see docs/small-batches.md.
    c.train.objective = "prototypes"
    c.train.centering = "centering"  # of teacher targets: centering | sinkhorn_knopp
    # Consecutive bad steps (loss not finite, or above 1.5 times that of a uniform
    # prediction) after which the run returns to its last checkpoint and skips the
    # batches since; and the number of such rollbacks before the run stops.
    c.train.max_nonfinite_steps = 5
    c.train.max_rollbacks = 3
    # Seconds without progress before the process writes all stack traces and exits, to
    # be restarted (compilation and evaluation may take four times as long); 0: never.
    c.train.hang_timeout = 1800.0

    c.teacher = config_dict.ConfigDict()
    # EMA momentum per step, at the first and the last step; a cosine in between.
    c.teacher.momentum_teacher = 0.992
    c.teacher.final_momentum_teacher = 1.0
    # Softmax temperature of the targets: first value, and value after the warm-up.
    c.teacher.warmup_teacher_temp = 0.04
    c.teacher.teacher_temp = 0.07
    c.teacher.warmup_teacher_temp_steps = 37_500  # reference: 30 epochs x 1250

    c.optim = config_dict.ConfigDict()
    c.optim.name = "adamw"  # a key of `optimizer.DIRECTIONS`
    c.optim.base_lr = 0.004  # at batch 1024; scaled by sqrt(batch / 1024)
    c.optim.min_lr = 1e-6  # at the last step, by a cosine; not scaled
    c.optim.warmup_steps = 12_500  # reference: 10 epochs x 1250
    c.optim.weight_decay = 0.04  # at the first step
    c.optim.weight_decay_end = 0.4  # at the last step, by a cosine
    c.optim.clip_grad = 3.0  # gradient norm per submodule; 0: no clipping
    c.optim.freeze_last_layer_steps = 1250  # prototypes fixed; reference: 1 epoch
    c.optim.patch_embed_lr_mult = 0.2  # factor on the rate of the patch embedding
    c.optim.layerwise_decay = 0.9  # factor on the rate per block below the last
    c.optim.adamw_beta1 = 0.9  # decay of the first moment per step
    c.optim.adamw_beta2 = 0.999  # decay of the second moment per step
    # Part of the backbone that learns when a run starts from `init` weights: all | last
    # (the last blocks and the last LayerNorm) | lora (low-rank changes of all blocks).
    # The rest keeps its bits. Heads always learn.
    c.optim.trainable = "all"
    c.optim.last_blocks = 4  # for last: number of blocks
    c.optim.lora_rank = 16  # for lora: rank of the changes
    c.optim.lora_alpha = 16.0  # for lora: the changes are scaled by alpha / rank
    c.optim.lora_ffn = (
        False  # for lora: change the FFN's matrices, not only attention's
    )

    c.mesh = config_dict.ConfigDict()
    # Copies of the state (HSDP), and devices that share a copy; 0: set by the other.
    # Both 0: one copy per TPU slice or NVLink domain, so that gathers stay on its fast
    # links.
    c.mesh.replica = 0
    c.mesh.fsdp = 0
    # Numbers without which the run does not start; 0: any.
    c.mesh.processes = 0
    c.mesh.devices = 0
    # Seconds without a heartbeat from one process after which all others end.
    c.mesh.heartbeat_timeout = 30

    c.checkpoint = config_dict.ConfigDict()
    c.checkpoint.every = 3750  # steps; reference: 3 epochs
    # Also save when the last save is this many minutes ago; 0: never. After a rollback,
    # the batches that are skipped then depend on the clock.
    c.checkpoint.minutes = 10.0
    c.checkpoint.keep_last = 3  # newest checkpoints that are kept
    c.checkpoint.keep_every = 0  # also keep every multiple of this step; 0: none
    # Keep the teacher of the best evaluation, step 0 included, and read the workdir as
    # that: "" (off) | knn | logreg | matching | all (best in the one of
    # `evaluation.tasks` that has gained least since step 0). Without `val_path`,
    # matching is measured on images of `data`. See docs/adapt.md.
    c.checkpoint.keep_best = ""

    c.log = config_dict.ConfigDict()
    c.log.every = 10  # steps
    c.log.tensorboard = True  # also write TensorBoard files, if it is installed
    # Further places of the metrics, any of wandb | mlflow | trackio; each is an extra.
    c.log.trackers = ()
    c.log.project = ""  # of the trackers; "": dinov2_jax
    c.log.run_name = ""  # in the trackers; "": the name of the workdir

    # What the teacher's features are worth. The photos source has its own images. For
    # others give two folders with one sub-folder per label, or anything else with
    # labels that `data.path` accepts, such as '/data/val/**/*.npy'; without, nothing is
    # measured.
    c.evaluation = config_dict.ConfigDict()
    # Steps; 0: only at the end. Runs with `init` weights are also measured at step 0.
    c.evaluation.every = 12_500
    # Any of knn, of class tokens | logreg, logistic regression on them, slower |
    # matching, of patches between crops: without labels, so of `val_path` alone; it
    # warns early when dense features decay. (): nothing is measured.
    c.evaluation.tasks = ("knn",)
    c.evaluation.train_path = ""  # labelled neighbours
    c.evaluation.val_path = ""  # images to classify
    c.evaluation.photos_split = "val"  # held-out tiles of the photos source: val | test
    c.evaluation.max_images = 10_000  # per set, evenly spaced; 0: all
    c.evaluation.matching_images = 16  # of `val_path`, evenly spaced
    c.evaluation.resize_size = 256  # px of the short side, bicubic, before the crop
    c.evaluation.image_size = 224  # px of the center crop
    # px of further center crops, for `knn/top1_at_224` and the like; of the same part
    # of the image.
    c.evaluation.other_sizes = ()
    c.evaluation.picture_size = 448  # px of the photographs in pca.png
    c.evaluation.batch_size = 64  # images
    c.evaluation.knn_k = (10, 20)  # neighbours; `knn/top1` uses the first
    c.evaluation.knn_temperature = 0.07  # of the votes' softmax
    c.lock()
    return c
