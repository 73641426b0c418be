//! x
pub mod protocol;
pub mod tree;
