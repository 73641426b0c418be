//! What variables hold before they are trained.

use tch::nn::{self, Init};

/// Where a model's values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// They are drawn, as the model's authors draw them.
    Drawn,
    /// A file replaces each of them: nothing is drawn, which for a CLIP of 150 million numbers takes a second.
    Filled,
}

impl Start {
    /// Of a model that is built to be trained or to be read from a file. A training draws values that a file replaces as well:
    /// others are drawn behind them, from the same seed.
    pub fn of(trains: bool) -> Self {
        if trains { Self::Drawn } else { Self::Filled }
    }

    /// Values around 0.
    pub fn normal(self, stdev: f64) -> Init {
        self.or_nothing(Init::Randn { mean: 0.0, stdev })
    }

    /// A convolution without a bias, as PyTorch begins.
    pub fn convolution(self, stride: i64, padding: i64) -> nn::ConvConfig {
        let config = nn::ConvConfig { stride, padding, bias: false, ..Default::default() };
        nn::ConvConfig { ws_init: self.or_nothing(config.ws_init), ..config }
    }

    fn or_nothing(self, drawn: Init) -> Init {
        match self {
            Self::Drawn => drawn,
            Self::Filled => Init::Const(0.0),
        }
    }
}
