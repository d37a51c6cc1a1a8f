//! External memory that is borrowed must outlive the borrow.

use buffer::BorrowedBuffer;

fn main() {
    let borrowed = {
        let numbers = vec![1_u32, 2, 3];
        BorrowedBuffer::from_slice(&numbers)
    };
    println!("{}", borrowed.len());
}
