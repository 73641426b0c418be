//! x
pub mod protocol;
pub mod tree;
pub mod diagnostic;
pub mod schema;
pub mod pattern;
pub mod manifest;
pub mod plan;
pub mod leakage;
pub mod pack;
pub mod event;
mod executor;
mod schedule;
pub mod run;
pub mod source;
pub mod key;
pub mod why;
pub mod graph;
