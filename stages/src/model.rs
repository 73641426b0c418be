//! The networks, each beside the equations that it follows.

pub mod clip;
pub mod head;
pub mod intervention;
pub mod transformer;
