//! Where the memory of private pools is: in a snapshot twice, as blocks of the device's own pool and piece by piece.

use device_memory::ffi::torch::devmem_torch_release_pool;
use device_memory::ffi::{DEVMEM_KIND_CUDA, devmem_picture_html, devmem_snapshot_json};
use serde_json::{Value, json};

use crate::torch::{MIB, NamedStream, POOL, begin, end, give, pool, start, take};

fn snapshot() -> Value {
    let mut text = vec![0_u8; 1 << 20];
    // SAFETY: the buffer has that many bytes.
    let length = unsafe { devmem_snapshot_json(DEVMEM_KIND_CUDA, 0, text.as_mut_ptr().cast(), text.len()) };
    serde_json::from_slice(&text[..length]).unwrap()
}

fn page() -> String {
    let mut text = vec![0_u8; 1 << 20];
    // SAFETY: the buffer has that many bytes.
    let length = unsafe { devmem_picture_html(DEVMEM_KIND_CUDA, 0, text.as_mut_ptr().cast(), text.len()) };
    text.truncate(length);
    String::from_utf8(text).unwrap()
}

/// The piece of the arenas that an address is in.
fn piece(of: &Value, address: usize) -> Option<Value> {
    let runs = of["arenas"].as_array().unwrap().iter().flat_map(|arena| arena["runs"].as_array().unwrap());
    let mut pieces = runs.flat_map(|run| run["pieces"].as_array().unwrap());
    let holds = |piece: &&Value| {
        let start = piece["address"].as_u64().unwrap();
        (start..start + piece["size"].as_u64().unwrap()).contains(&(address as u64))
    };
    pieces.find(holds).cloned()
}

#[test]
fn private_pools_are_seen_piece_by_piece() {
    let Some(fake) = start() else { return };
    let stream = NamedStream::new();
    let outside = take(MIB, stream.stream());
    begin();
    let inside = take(MIB, stream.stream());
    end();
    let seen = snapshot();
    let private = &seen["private_pools"][0];
    assert_eq!(private["pool"], json!([POOL.first, POOL.second]));
    let block = |of: &Value, address: usize| {
        piece(of, address).map(|piece| (piece["kind"].clone(), piece["requested"].as_u64()))
    };
    assert_eq!(block(private, inside.addr()), Some(("block".into(), Some(MIB as u64))));
    assert_eq!(block(private, outside.addr()), None);
    assert_eq!(block(&seen, outside.addr()), Some(("block".into(), Some(MIB as u64))));
    let around = piece(&seen, inside.addr()).unwrap();
    assert_eq!(around["kind"], "block", "the device's own pool has handed it out as a whole");
    assert!(around["size"].as_u64().unwrap() > MIB as u64);
    let page = page();
    assert!(
        page.contains("Memory of cuda:0") && page.contains("Private pool 7, 0: part of the blocks above"),
        "{page}"
    );
    let calls = pool().statistics().provider_calls;
    snapshot();
    assert_eq!(pool().statistics().provider_calls, calls);

    // Looking at a pool keeps nobody from giving it back.
    give(inside, MIB, stream.stream());
    assert_eq!(snapshot()["private_pools"].as_array().unwrap().len(), 1, "it has a holder");
    devmem_torch_release_pool(0, POOL);
    assert_eq!(snapshot()["private_pools"], json!([]));
    give(outside, MIB, stream.stream());
    assert_eq!(pool().statistics().in_use.current, 0);
    drop(fake);
}
