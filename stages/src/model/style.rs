//! Mixing of feature statistics between images (MixStyle: Zhou et al., ICLR 2021, equations 1 to 6).

use tch::{Kind, Tensor};

/// Added to variances.
const EPS: f64 = 1e-6;

/// Which images share their style, and how much of their own they keep.
#[derive(Debug)]
pub struct Mix {
    /// Share of the own style: (B).
    pub keeps: Tensor,
    /// The image whose style comes in: (B), places in the batch.
    pub partner: Tensor,
}

impl Mix {
    /// `x`: (B, C, H, W), statistics over H and W; or (B, N, C), statistics over N. They pass no gradient. The same shape.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let (axes, shape): (&[i64], &[i64]) =
            if x.dim() == 4 { (&[2, 3], &[-1, 1, 1, 1]) } else { (&[1], &[-1, 1, 1]) };
        let mean = x.mean_dim(Some(axes), true, None::<Kind>).detach();
        let std = (x.var_dim(Some(axes), true, true) + EPS).sqrt().detach();
        let keeps = self.keeps.view(shape);
        let mixed = |own: &Tensor| {
            let partner = own.index_select(0, &self.partner);
            own * &keeps + partner * (1.0 - &keeps)
        };
        (x - &mean) / &std * mixed(&std) + mixed(&mean)
    }
}
