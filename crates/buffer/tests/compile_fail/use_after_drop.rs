//! A buffer that was dropped can't be used.

use buffer::Buffer;

fn main() {
    let buffer = Buffer::new(alloc_cpu::global().unwrap(), 64).unwrap();
    drop(buffer);
    println!("{:?}", buffer.address());
}
