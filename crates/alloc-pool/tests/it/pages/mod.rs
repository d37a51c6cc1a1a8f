//! How the pool comes by physical memory, moves it, and gives it back.

mod beforehand;
mod growth;
mod moving;
mod out_of_memory;
mod pressure;
mod steady;
mod trimming;
