//! Kernels on the CPU: loops that the compiler turns into the machine's vector instructions. A crate of its own, since
//! debug builds optimise it.
//!
//! Threads never change a bit: tasks write disjoint rows, and sums over rows are taken in blocks of a fixed size. Sums run
//! over a fixed number of lanes, so that the width of registers changes none either.
//!
//! - [`matmul`]: matrix products
//! - [`attention`]: softmax attention within texts that lie one after the other
//! - [`pool`]: means of token states
//! - [`norm`]: layer normalisation of a sum
//! - [`elementwise`]: GELU and column sums; `math`: exponential and error function

pub mod attention;
pub mod elementwise;
mod math;
pub mod matmul;
pub mod norm;
mod parallel;
pub mod pool;
mod vectorise;
