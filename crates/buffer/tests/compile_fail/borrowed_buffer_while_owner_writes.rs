//! Nobody writes to external memory while it is borrowed.

use buffer::BorrowedBuffer;

fn main() {
    let mut numbers = vec![1_u32, 2, 3];
    let borrowed = BorrowedBuffer::from_slice(&numbers);
    numbers.push(4);
    println!("{}", borrowed.len());
}
