//! Smooth noise: random values on a lattice, joined by smooth curves.

use rand::Rng;

/// A field of smooth noise over the unit square, about -1 to 1.
pub(super) struct Noise {
    cells: usize,
    lattice: Vec<f32>,
}

impl Noise {
    /// Noise with `cells` bumps along each side.
    pub(super) fn new(rng: &mut impl Rng, cells: usize) -> Self {
        let n = cells + 2;
        Self { cells, lattice: (0..n * n).map(|_| rng.random_range(-1.0..1.0f32)).collect() }
    }

    /// The value at (u, v), each 0 to 1.
    pub(super) fn at(&self, u: f32, v: f32) -> f32 {
        let n = self.cells + 2;
        let (x, y) = (u.clamp(0.0, 1.0) * self.cells as f32, v.clamp(0.0, 1.0) * self.cells as f32);
        let (i, j) = (x as usize, y as usize);
        let (fx, fy) = (smooth(x - i as f32), smooth(y - j as f32));
        let value = |i: usize, j: usize| self.lattice[j * n + i];
        let top = value(i, j) + (value(i + 1, j) - value(i, j)) * fx;
        let bottom = value(i, j + 1) + (value(i + 1, j + 1) - value(i, j + 1)) * fx;
        top + (bottom - top) * fy
    }
}

/// A smooth step from 0 to 1 as `t` goes from 0 to 1.
pub(super) fn smooth(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}
