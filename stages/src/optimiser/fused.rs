//! AdamW's update of a variable on a CPU in three passes over memory: number by number what the operations of `step_by_step` do one
//! after the other, with the same bits.

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::{BETAS, Change, EPS};

/// So many numbers are one thread's share: enough to be worth the hand-over.
const SHARE: usize = 1 << 16;

/// Moves a variable and its moments along its gradient. Returns false, with everything as it was, where it cannot: on a GPU, in other
/// precisions, or where the four do not lie alike in memory.
pub(super) fn step(
    value: &mut Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    gradient: &Tensor,
    change: &Change,
) -> bool {
    let strides = value.stride();
    let fits = |tensor: &Tensor| {
        tensor.device() == Device::Cpu
            && tensor.kind() == Kind::Float
            && tensor.stride() == strides
            && fills_its_memory(tensor)
    };
    if ![&*value, first, second, gradient].into_iter().all(fits) {
        return false;
    }
    let numbers = Numbers::of(change);
    let moments = numbers_mut(first).par_chunks_mut(SHARE).zip(numbers_mut(second).par_chunks_mut(SHARE));
    moments
        .zip(numbers_of(gradient).par_chunks(SHARE))
        .for_each(|((first, second), gradient)| numbers.move_moments(first, second, gradient));
    // libtorch's, as the roots of Intel's MKL are not rounded like those of the processor.
    let root = second.sqrt();
    let directions = numbers_of(first).par_chunks(SHARE).zip(numbers_of(&root).par_chunks(SHARE));
    numbers_mut(value)
        .par_chunks_mut(SHARE)
        .zip(directions)
        .for_each(|(value, (first, root))| numbers.move_value(value, first, root));
    true
}

/// What a change multiplies by, in the precision that it is done in.
struct Numbers {
    scale: f32,
    keep: (f32, f32),
    take: (f32, f32),
    expected_root: f32,
    eps: f32,
    decay: f32,
    rate: f32,
}

impl Numbers {
    fn of(change: &Change) -> Self {
        Self {
            scale: change.scale.as_ref().map_or(1.0, |scale| scale.double_value(&[]) as f32),
            keep: (BETAS.0 as f32, BETAS.1 as f32),
            take: ((1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32),
            expected_root: change.bias.1.sqrt() as f32,
            eps: EPS as f32,
            decay: (1.0 - change.lr * change.weight_decay) as f32,
            rate: (change.lr / change.bias.0) as f32,
        }
    }

    fn move_moments(&self, first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
        for ((first, second), gradient) in first.iter_mut().zip(second).zip(gradient) {
            let gradient = gradient * self.scale;
            *first = *first * self.keep.0 + gradient * self.take.0;
            *second = *second * self.keep.1 + gradient * gradient * self.take.1;
        }
    }

    /// `root` is that of the second moment.
    fn move_value(&self, value: &mut [f32], first: &[f32], root: &[f32]) {
        for ((value, first), root) in value.iter_mut().zip(first).zip(root) {
            let denominator = root / self.expected_root + self.eps;
            *value = *value * self.decay - first / denominator * self.rate;
        }
    }
}

/// Whether a tensor has its memory to itself without gaps, in whichever order of its axes.
fn fills_its_memory(tensor: &Tensor) -> bool {
    let sizes = tensor.size();
    let mut axes: Vec<(i64, i64)> = tensor.stride().into_iter().zip(sizes).filter(|(_, size)| *size != 1).collect();
    axes.sort_unstable();
    let mut filled = 1;
    let dense = axes.into_iter().all(|(stride, size)| {
        let adjoins = stride == filled;
        filled *= size;
        adjoins
    });
    dense && filled > 0
}

fn numbers_of(tensor: &Tensor) -> &[f32] {
    // SAFETY: so many numbers of 32 bits lie there side by side, and only the optimiser, which waits, writes to them.
    #[expect(unsafe_code, reason = "tch gives no slice of a tensor's memory")]
    unsafe {
        std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel())
    }
}

fn numbers_mut(tensor: &mut Tensor) -> &mut [f32] {
    // SAFETY: so many numbers of 32 bits lie there side by side; a variable and its moments share no memory with anything else.
    #[expect(unsafe_code, reason = "tch gives no slice of a tensor's memory")]
    unsafe {
        std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel())
    }
}

#[cfg(test)]
mod tests {
    use tch::IndexOp;

    use super::super::step_by_step;
    use super::*;

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let numbers: Vec<f32> = tensor.contiguous().view(-1).try_into().unwrap();
        numbers.into_iter().map(f32::to_bits).collect()
    }

    /// Thirty updates of a variable by both ways, which never differ by a bit; `lay` says how they lie in memory.
    fn check(lay: impl Fn(Tensor) -> Tensor, scale: Option<f64>) {
        let sizes = [3, 8, 61, 173];
        let draw = |scale: f64| lay(Tensor::randn(sizes, (Kind::Float, Device::Cpu)) * scale);
        let start = [draw(1.0), draw(0.0), draw(0.0)];
        let [mut ours, mut theirs] = [(); 2].map(|()| start.each_ref().map(Tensor::copy));
        for done in 1..=30 {
            // From tiny to large: denormal squares as well.
            let gradient = draw(10f64.powi(done % 13 - 9));
            let change = Change {
                scale: scale.map(|scale| Tensor::from(scale as f32)),
                lr: 0.01 / f64::from(done),
                weight_decay: 0.05,
                bias: (1.0 - BETAS.0.powi(done), 1.0 - BETAS.1.powi(done)),
            };
            let [value, first, second] = &mut ours;
            assert!(step(value, first, second, &gradient, &change));
            let [value, first, second] = &mut theirs;
            step_by_step(value, first, second, &gradient, &change);
            for (own, other) in ours.iter().zip(&theirs) {
                assert!(bits(own) == bits(other), "update {done}");
            }
        }
    }

    #[test]
    fn three_passes_have_the_bits_of_the_operations() {
        check(|tensor| tensor, None);
        check(|tensor| tensor, Some(0.37));
        // Channels innermost.
        check(|tensor| tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]), Some(0.37));
    }

    #[test]
    fn what_has_gaps_or_repeats_is_left_to_the_operations() {
        let whole = Tensor::zeros([6, 4], (Kind::Float, Device::Cpu));
        assert!(fills_its_memory(&whole) && fills_its_memory(&whole.tr()));
        assert!(!fills_its_memory(&whole.i((.., 0))) && !fills_its_memory(&whole.i(0).expand([6, 4], false)));
        assert!(!fills_its_memory(&Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))));
    }
}
