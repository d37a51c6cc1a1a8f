//! A borrowed slice does not outlive its buffer.

use buffer::{BorrowedBuffer, Buffer};

fn dangling() -> BorrowedBuffer<'static> {
    let buffer = Buffer::zeroed(alloc_cpu::global().unwrap(), 64).unwrap();
    buffer.slice(..8).unwrap()
}

fn main() {
    dangling();
}
