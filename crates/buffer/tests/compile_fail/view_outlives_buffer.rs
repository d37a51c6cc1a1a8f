//! A host view does not outlive its buffer.

use buffer::Buffer;

fn main() {
    let buffer = Buffer::zeroed(alloc_cpu::global().unwrap(), 64).unwrap();
    let bytes = buffer.as_bytes().unwrap();
    drop(buffer);
    println!("{}", bytes[0]);
}
