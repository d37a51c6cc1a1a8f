//! A buffer is never copied by accident.

use buffer::Buffer;

fn main() {
    let buffer = Buffer::new(alloc_cpu::global().unwrap(), 64).unwrap();
    let copy = buffer.clone();
    drop((buffer, copy));
}
