//! The traces that come with the workspace are consistent and are what their description says.

use alloc_trace::{Policy, Profile, Trace};
use benches::traces::{folder, shipped};

#[test]
fn the_traces_are_what_their_description_says() {
    // Name, rows, allocations, streams, peak live bytes, blocks that live at the end, distinct sizes if told.
    let described = [
        ("gpt2_train", 120_000, 60_320, 1, 7_701_353_160, 640),
        ("llama_serve", 120_000, 60_103, 1, 1_049_235_712, 206),
        ("maskrcnn_train", 118_187, 59_095, 1, 16_290_459_714, 3),
        ("moe_train", 114_570, 57_286, 1, 3_623_296_424, 2),
        ("gnn_sampled", 120_000, 60_027, 1, 1_789_948_440, 54),
        ("prefetch_streams", 120_000, 60_005, 4, 263_520_256, 10),
    ];
    assert_eq!(shipped().unwrap().len(), described.len());
    for (name, rows, allocations, streams, peak, left) in described {
        let trace = Trace::load(folder().join(format!("{name}.csv.zst")), Policy::Strict).unwrap();
        let profile = Profile::of(&trace);
        assert_eq!(profile.operations(), rows, "{name}");
        assert_eq!(profile.allocations, allocations, "{name}");
        assert_eq!(trace.streams().len(), streams, "{name}");
        assert_eq!(profile.peak_live_bytes, peak, "{name}");
        assert_eq!(profile.live_blocks_at_end, left, "{name}");
    }
}
