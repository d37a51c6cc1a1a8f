//! A buffer does not move while it is borrowed.

use buffer::Buffer;

fn main() {
    let mut buffer = Buffer::zeroed(alloc_cpu::global().unwrap(), 64).unwrap();
    let slice = buffer.slice(..32).unwrap();
    let _ = buffer.resize(128).unwrap();
    println!("{}", slice.len());
}
