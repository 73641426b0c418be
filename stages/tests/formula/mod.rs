//! Weights by a formula, the same here and in tests/golden/formula.py.

use tch::{Tensor, nn};

fn fnv(name: &str) -> u64 {
    name.bytes().fold(0x811C_9DC5, |value, byte| ((value ^ u64::from(byte)) * 0x0100_0193) & 0xFFFF_FFFF)
}

/// Values between -1 and 1, by a hash of their place and the tensor's name.
pub fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed = fnv(name);
    (0..count as u64).map(move |place| {
        let mut z = (place + seed) & 0xFFFF_FFFF;
        z = (z * 0x9E37_79B1) & 0xFFFF_FFFF;
        z ^= z >> 15;
        z = (z * 0x85EB_CA77) & 0xFFFF_FFFF;
        z ^= z >> 13;
        z as f64 / 2f64.powi(31) - 1.0
    })
}

/// The tensor `name`: matrices and kernels keep the variance of what passes them, norms are near 1.
pub fn weight(name: &str, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let scale = (3.0 / shape.get(1..).unwrap_or_default().iter().product::<i64>() as f64).sqrt();
    let value = |draw: f64| {
        let value = if name.ends_with("running_var") {
            1.0 + 0.3 * draw.abs()
        } else if shape.len() > 1 {
            draw * scale
        } else if name.ends_with("weight") {
            1.0 + 0.2 * draw
        } else {
            0.2 * draw
        };
        value as f32
    };
    Tensor::from_slice(&uniform(name, count).map(value).collect::<Vec<_>>()).view(shape)
}

/// Fills every variable of a store; `prefix` is put in front of names.
#[allow(dead_code, reason = "not every test that uses this module fills a store")]
pub fn fill(store: &nn::VarStore, prefix: &str) {
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            variable.copy_(&weight(&format!("{prefix}{name}"), &variable.size()));
        }
    });
}
