//! Two views of the same bytes don't exist while one of them may write.

use buffer::Buffer;

fn main() {
    let mut buffer = Buffer::zeroed(alloc_cpu::global().unwrap(), 64).unwrap();
    let exclusive = buffer.as_bytes_mut().unwrap();
    let view = buffer.as_bytes().unwrap();
    exclusive[0] = view[1];
}
