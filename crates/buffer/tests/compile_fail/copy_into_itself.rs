//! A copy never overlaps itself.

use buffer::Buffer;

fn main() {
    let mut buffer = Buffer::zeroed(alloc_cpu::global().unwrap(), 64).unwrap();
    let source = buffer.slice(..32).unwrap();
    buffer.copy_from(&source).unwrap();
}
