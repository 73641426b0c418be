//! Arithmetic in 16 bits: for encoders whose weights are cast, and for training in mixed precision.

use std::cell::Cell;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::error::{Result, StageError};

/// Floats that an encoder is run in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    Fp32,
    /// 16 bits with the exponent of 32.
    Bf16,
    /// 16 bits with a longer fraction and a shorter exponent.
    Fp16,
}

/// Floats of training: fp16 would need its losses scaled, and is none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrainingPrecision {
    /// 32 bits.
    #[default]
    Fp32,
    /// Matrix products and convolutions in 16 bits with the exponent of 32; all else in 32.
    Bf16,
}

impl Precision {
    /// As libtorch calls it.
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::Fp16 => Kind::Half,
        }
    }

    /// Whether it is 32 bits.
    pub fn is_full(&self) -> bool {
        *self == Self::Fp32
    }
}

/// Floats in which sums over numbers of a kind are taken, and in which constants go beside them: 32 bits at least.
pub fn wide(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// libtorch's switch of automatic mixed precision for one device. tch wraps only that of CUDA in fp16, so libtorch's own functions
/// are looked up by their names in the library that is mapped already.
#[derive(Clone, Copy)]
pub struct Autocast {
    enable: unsafe extern "C" fn(i8, bool),
    set_kind: unsafe extern "C" fn(i8, i8),
    clear: unsafe extern "C" fn(),
    device: i8,
}

thread_local! {
    static AT_WORK: Cell<Option<Autocast>> = const { Cell::new(None) };
}

/// c10::DeviceType and c10::ScalarType::BFloat16.
const CPU: i8 = 0;
const CUDA: i8 = 1;
const BFLOAT16: i8 = 15;

impl Autocast {
    /// Mixed precision in bf16 on `device`; none for 32 bits.
    ///
    /// # Errors
    /// A libtorch without the functions.
    pub fn new(precision: TrainingPrecision, device: Device) -> Result<Option<Self>> {
        if precision == TrainingPrecision::Fp32 {
            return Ok(None);
        }
        let library = libloading::os::unix::Library::this();
        let device = if device.is_cuda() { CUDA } else { CPU };
        // SAFETY: the names are those of functions with these very parameters in libtorch 2.11 (ATen/autocast_mode.h), whose
        // version is pinned; enumerations there are of 8 bits.
        #[expect(unsafe_code, reason = "functions of libtorch that tch does not wrap")]
        let found = unsafe {
            let enable = library.get(b"_ZN2at8autocast20set_autocast_enabledEN3c1010DeviceTypeEb\0");
            let set_kind = library.get(b"_ZN2at8autocast18set_autocast_dtypeEN3c1010DeviceTypeENS1_10ScalarTypeE\0");
            let clear = library.get(b"_ZN2at8autocast11clear_cacheEv\0");
            match (enable, set_kind, clear) {
                (Ok(enable), Ok(set_kind), Ok(clear)) => {
                    Some(Self { enable: *enable, set_kind: *set_kind, clear: *clear, device })
                }
                _ => None,
            }
        };
        let message = "this libtorch has no switch of mixed precision where it is expected: leave `precision` out";
        found.map(Some).ok_or_else(|| StageError::Request(message.into()))
    }

    /// Does something with matrix products and convolutions in bf16, in this thread.
    #[expect(unsafe_code, reason = "functions of libtorch that tch does not wrap")]
    pub fn during<T>(&self, something: impl FnOnce() -> T) -> T {
        // SAFETY: they set the thread's own switches, and free what was cast while they were on.
        unsafe {
            (self.set_kind)(self.device, BFLOAT16);
            (self.enable)(self.device, true);
        }
        let outer = AT_WORK.replace(Some(*self));
        let result = something();
        AT_WORK.set(outer);
        unsafe {
            (self.enable)(self.device, false);
            (self.clear)();
        }
        result
    }

    /// Does something in the precision that its tensors have, within [`Autocast::during`] or outside it.
    #[expect(unsafe_code, reason = "functions of libtorch that tch does not wrap")]
    pub fn paused<T>(something: impl FnOnce() -> T) -> T {
        let Some(at_work) = AT_WORK.get() else { return something() };
        // SAFETY: as in `during`.
        unsafe { (at_work.enable)(at_work.device, false) };
        let result = something();
        unsafe { (at_work.enable)(at_work.device, true) };
        result
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn products_are_in_16_bits_while_it_is_on_and_not_after() {
        let x = Tensor::rand([8, 8], (Kind::Float, Device::Cpu));
        let cast = Autocast::new(TrainingPrecision::Bf16, Device::Cpu).unwrap().unwrap();
        let (mixed, paused) = cast.during(|| (x.matmul(&x), Autocast::paused(|| x.matmul(&x))));
        assert_eq!((mixed.kind(), paused.kind()), (Kind::BFloat16, Kind::Float));
        assert_eq!(x.matmul(&x).kind(), Kind::Float);
    }
}
