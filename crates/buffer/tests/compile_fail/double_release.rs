//! A buffer that was dropped can't be dropped again.

use buffer::Buffer;

fn main() {
    let buffer = Buffer::new(alloc_cpu::global().unwrap(), 64).unwrap();
    drop(buffer);
    drop(buffer);
}
