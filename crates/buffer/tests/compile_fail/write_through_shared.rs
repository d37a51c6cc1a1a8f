//! Of several handles to a buffer none writes.

use buffer::{Buffer, SharedBuffer};

fn main() {
    let shared = SharedBuffer::from(Buffer::new(alloc_cpu::global().unwrap(), 64).unwrap());
    shared.fill(1).unwrap();
}
