//! The built-in stage kinds and the models behind them: the only crate that links libtorch.

pub mod checkpoint;
pub mod data;
pub mod dictionary;
pub mod error;
pub mod fingerprint;
pub mod frame;
pub mod kind;
pub mod loss;
pub mod memo;
pub mod method;
pub mod metric;
pub mod model;
pub mod optimiser;
pub mod precision;
pub mod resume;
pub mod runtime;
pub mod sampler;
pub mod segmenter;
pub mod shared;
pub mod trainer;
