//! CLIP's text tower (methods.md 5.2): causal blocks, read off at the end token.

use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};

use super::ClipConfig;
use crate::model::start::Start;
use crate::model::transformer::{Block, layer_norm};

/// Token and position tables, causal blocks, projection.
#[derive(Debug)]
pub struct TextTower {
    token_embedding: Tensor,
    positional_embedding: Tensor,
    blocks: Vec<Block>,
    ln_final: nn::LayerNorm,
    text_projection: Tensor,
}

impl TextTower {
    /// The tower; drawn values are CLIP's initial ones. `path` is the root: OpenAI's text parameters have no prefix.
    pub fn new(path: &nn::Path, config: &ClipConfig, start: Start) -> Self {
        let width = config.text_width;
        let normal = |stdev| start.normal(stdev);
        let resblocks = path / "transformer" / "resblocks";
        Self {
            token_embedding: (path / "token_embedding").var("weight", &[config.vocab_size, width], normal(0.02)),
            positional_embedding: path.var("positional_embedding", &[config.context_length, width], normal(0.01)),
            blocks: (0..config.text_layers)
                .map(|i| Block::new(&(&resblocks / i), width, config.text_layers, config.activation, true, start))
                .collect(),
            ln_final: layer_norm(&(path / "ln_final"), width),
            text_projection: path.var("text_projection", &[width, config.embed_dim], normal((width as f64).powf(-0.5))),
        }
    }

    /// `rows`: the token rows of each text, start and end included, without padding; `None` stands for a token
    /// that the table does not hold, which embeds as zero. Returns (texts, d), not normalised.
    ///
    /// Attention is causal and the feature is read at the end token, so nothing behind it matters: texts are padded to
    /// the longest of them, not to the whole context.
    pub fn forward(&self, rows: &[Vec<Option<i64>>], device: Device) -> Tensor {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(1);
        let mut ids = vec![0i64; rows.len() * longest];
        let mut known = vec![0f32; rows.len() * longest];
        let mut ends = Vec::with_capacity(rows.len());
        for (text, row) in rows.iter().enumerate() {
            for (place, token) in row.iter().enumerate() {
                if let Some(id) = token {
                    ids[text * longest + place] = *id;
                    known[text * longest + place] = 1.0;
                }
            }
            ends.push(row.len() as i64 - 1);
        }
        let shape = [rows.len() as i64, longest as i64];
        let ids = Tensor::from_slice(&ids).view(shape).to_device(device);
        let known = Tensor::from_slice(&known).view([shape[0], shape[1], 1]).to_device(device);
        let tokens = Tensor::embedding(&self.token_embedding, &ids, -1, false, false) * known;
        self.encode(&tokens, &Tensor::from_slice(&ends).to_device(device))
    }

    /// The rows of one text in the token table: (length, width); zeros for tokens that it does not hold.
    pub fn embed(&self, row: &[Option<i64>]) -> Tensor {
        let device = self.token_embedding.device();
        let ids: Vec<i64> = row.iter().map(|token| token.unwrap_or(0)).collect();
        let known: Vec<f32> = row.iter().map(|token| f32::from(u8::from(token.is_some()))).collect();
        let rows = self.token_embedding.index_select(0, &Tensor::from_slice(&ids).to_device(device));
        rows * Tensor::from_slice(&known).view([-1, 1]).to_device(device)
    }

    /// `tokens`: embedded, (texts, length, width); `ends`: the place of each text's end token. (texts, d), not normalised.
    pub fn encode(&self, tokens: &Tensor, ends: &Tensor) -> Tensor {
        let (texts, length, _) = tokens.size3().expect("tokens are (texts, length, width)");
        let x = tokens + self.positional_embedding.narrow(0, 0, length);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x));
        let rows = Tensor::arange(texts, (Kind::Int64, tokens.device()));
        let last = self.ln_final.forward(&x).index(&[Some(rows), Some(ends.shallow_clone())]);
        last.matmul(&self.text_projection)
    }
}
