//! x
pub mod checkpoint;
pub mod error;
pub mod kind;
pub mod model;
