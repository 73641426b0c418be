//! CausalCLIPSeg (arXiv 2503.15949, MICCAI 2024; methods.md 2): the network as released, and a training that is inferred: the paper's loss
//! was not seen, and the alternation is that of CIRL (Lv et al., CVPR 2022), whose naming and masker it shares.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::contract::{At, Batch, Forward, Given, Method, Seen, Sentence, Takes, Wants};
use crate::data::Content;
use crate::error::{Result, StageError};
use crate::loss;
use crate::model::causalclipseg::{CausalClipSeg, Masks};
use crate::model::clip::{Tokenizer, normalise};
use crate::model::start::Start;
use crate::shared::Shared;

/// How the two branches play against each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Game {
    /// Two updates a step: all but the maskers on both branches' losses, then the maskers alone, for the causal and against the
    /// confounding branch.
    #[default]
    Alternate,
    /// One update, the gradient of the confounding branch into the maskers reversed.
    Grl,
    /// None: the mean of both branches' logits is trained and predicts.
    NoGame,
}

/// Which text an image is shown with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Text {
    /// Its own sentence; its class's prompt where the site has none.
    #[default]
    Sentences,
    /// Its class's prompt.
    Classes,
    /// The sentence of another image of its site: a control, as sentences that were written from masks give them away.
    Shuffled,
    /// An empty text: a control.
    Empty,
}

/// What is minimised of each branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Loss {
    /// Binary cross-entropy, CRIS's loss.
    #[default]
    #[serde(rename = "bce")]
    Bce,
    /// Half of it and half of Dice.
    #[serde(rename = "bce+dice")]
    BceDice,
}

/// Which branch predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Predicts {
    /// The causal one, as in CIRL.
    #[default]
    Sup,
    /// The mean of both branches' logits.
    Mean,
}

/// Parameters of CausalCLIPSeg. [S]: stated by the paper; [C]: read in code; [I]: inferred.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// How the branches play. [I]
    pub game: Game,
    /// Epochs at the start in which the masks are all ones. [I], 5 in CIRL
    pub warm_up: usize,
    /// What is minimised. [I]
    pub loss: Loss,
    /// Which branch predicts; without a game it is the mean. [I]
    pub predicts: Predicts,
    /// Which text an image is shown with.
    pub text: Text,
    /// Tokens of a sentence that are read; a longer one is cut. [I]
    #[schemars(range(min = 3))]
    pub word_length: usize,
    /// What the learning rate is multiplied by for CLIP's own weights, positions excepted: 0.1 in CRIS. [C]
    #[schemars(range(min = 0.0))]
    pub backbone_lr: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            game: Game::Alternate,
            warm_up: 5,
            loss: Loss::Bce,
            predicts: Predicts::Sup,
            text: Text::Sentences,
            word_length: 32,
            backbone_lr: 0.1,
        }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::PixelsForClip);

/// The step's update that moves the maskers, behind the one that moves all else.
const MASKS: usize = 1;

/// Builds the network.
///
/// # Errors
/// No CLIP with a ResNet, masks of another size than the images.
pub fn build(params: &Params, path: &nn::Path, given: Given) -> Result<Box<dyn Method>> {
    let clip = given.clip("causalclipseg")?;
    let no_resnet = || StageError::Request("causalclipseg needs a CLIP with a ResNet (RN101, RN50), not a ViT".into());
    let network = CausalClipSeg::new(path, clip, Start::of(given.trains)).ok_or_else(no_resnet)?;
    let context = params.word_length.min(clip.context_length as usize);
    Ok(Box::new(CausalClipSegMethod {
        network,
        side: given.sizes.side,
        context,
        class_prompts: given.class_prompts.to_vec(),
        tokenizer: given.tokenizer.unwrap_or_else(Tokenizer::full),
        params: params.clone(),
        trained_until: usize::MAX,
    }))
}

struct CausalClipSegMethod {
    network: CausalClipSeg,
    params: Params,
    side: i64,
    context: usize,
    class_prompts: Vec<String>,
    tokenizer: Tokenizer,
    /// The epoch that the weights are of.
    trained_until: usize,
}

impl CausalClipSegMethod {
    fn loss(&self, logits: &Tensor, masks: &Tensor) -> Tensor {
        match self.params.loss {
            Loss::Bce => loss::segmentation(logits, masks),
            Loss::BceDice => loss::segmentation(logits, masks) * 0.5 + loss::dice(logits, masks) * 0.5,
        }
    }

    fn sized(&self, logits: &Tensor) -> Tensor {
        let size = [self.side, self.side];
        if logits.size()[2..] == size {
            logits.shallow_clone()
        } else {
            logits.upsample_bilinear2d(size, false, None, None)
        }
    }
}

impl Method for CausalClipSegMethod {
    fn sentence(&self, own: Option<&str>, class: Option<usize>) -> Sentence {
        let own = own.filter(|_| self.params.text != Text::Classes).map(str::to_owned);
        let prompt = || class.and_then(|class| self.class_prompts.get(class)).cloned();
        match self.params.text {
            Text::Empty => Sentence::Text(String::new()),
            _ => own.or_else(prompt).map_or(Sentence::Missing, Sentence::Text),
        }
    }

    fn shuffles_sentences(&self) -> bool {
        self.params.text == Text::Shuffled
    }

    fn forward(&self, _shared: &Shared, batch: &Batch, at: Option<At>) -> Forward {
        let Content::Pixels(pixels) = &batch.content else { unreachable!("it asked for pixels") };
        let rows: Vec<_> = batch.texts.iter().map(|text| self.tokenizer.encode_cut(text, self.context)).collect();
        let states = self.network.states(&rows, pixels.device());
        let masks = match (self.params.game, at) {
            // The maskers learn from the start; what they say counts behind the warm-up.
            (Game::Alternate, Some(at)) if at.epoch <= self.params.warm_up && at.update != MASKS => Masks::Ones,
            (Game::Grl, Some(at)) if at.epoch <= self.params.warm_up => Masks::Ones,
            (Game::Grl, Some(_)) => Masks::Reversed,
            // Weights of the warm-up predict as they were trained.
            (Game::Alternate | Game::Grl, None) if self.trained_until <= self.params.warm_up => Masks::Ones,
            _ => Masks::Split,
        };
        let branches = self.network.forward(&normalise(pixels), &states, masks, at.is_some());
        let mean = (&branches.sup + &branches.inf) * 0.5;
        let alone = self.params.game == Game::NoGame;
        let predicts = match (alone, at, self.params.predicts) {
            (true, ..) | (_, None, Predicts::Mean) => &mean,
            _ => &branches.sup,
        };
        Forward {
            logits: loss::two_logits(&self.sized(predicts)),
            other: (!alone).then(|| loss::two_logits(&self.sized(&branches.inf))),
            inner: None,
        }
    }

    fn objective(&self, seen: &Seen) -> Tensor {
        let sup = self.loss(&seen.forward.logits, seen.masks);
        let Some(other) = &seen.forward.other else { return sup };
        let inf = self.loss(other, seen.masks);
        match seen.at.update {
            MASKS => sup * 0.5 - inf * 0.5,
            _ => sup * 0.5 + inf * 0.5,
        }
    }

    fn updates(&self, _epoch: usize) -> usize {
        if self.params.game == Game::Alternate { 2 } else { 1 }
    }

    fn moves(&self, update: usize, variable: &str) -> bool {
        self.params.game != Game::Alternate || variable.contains(".masker_") == (update == MASKS)
    }

    fn lacks(&self, epoch: usize) -> Option<&'static str> {
        (self.params.game != Game::NoGame && epoch <= self.params.warm_up).then_some("the maskers")
    }
    fn trained_until(&mut self, epoch: usize) {
        self.trained_until = epoch;
    }

    fn lr_factor(&self, variable: &str) -> f64 {
        let of_clip = variable.starts_with("method.backbone.") && !variable.contains("positional_embedding");
        if of_clip { self.params.backbone_lr } else { 1.0 }
    }
}
