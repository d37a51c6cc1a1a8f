//! Parts become a buffer once: after that they are gone.

use buffer::{Buffer, BufferParts};

fn twice(parts: BufferParts) -> (Buffer, Buffer) {
    // SAFETY: only to see the compiler refuse.
    unsafe { (Buffer::from_raw_parts(parts), Buffer::from_raw_parts(parts)) }
}

fn main() {
    let _ = twice;
}
