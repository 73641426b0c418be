//! Sites and their samples: decoding, splits, and phantoms whose truth is known.

pub mod phantom;
mod error;
pub use error::DatasetError;
