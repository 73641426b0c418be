//! CLIP against `transformers` at random weights: numbers made by tests/golden/clip/make.py. Tolerance 1e-4.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod formula;

use std::path::{Path, PathBuf};

use siteline_stages::checkpoint::{self, Tensors};
use siteline_stages::model::clip::{Dense, Tower, weights};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/clip").join(name)
}

fn agree(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let difference = (found - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]).max(1.0);
    assert!(difference / scale < 1e-4, "{what} differs by {difference} (largest value {scale})");
}

/// The token rows of the golden texts.
fn rows_of(expected: &Tensors) -> Vec<Vec<Option<i64>>> {
    let lengths = Vec::<i64>::try_from(&expected["lengths"]).unwrap();
    let row = |(row, length): (usize, &i64)| {
        (0..*length).map(|i| Some(expected["ids"].int64_value(&[row as i64, i]))).collect()
    };
    lengths.iter().enumerate().map(row).collect()
}

fn compare(file: &Path) {
    let (_store, clip) = weights::load(file, weights::Settings::default(), Device::Cpu).unwrap();
    let expected = checkpoint::read(&golden("expected.safetensors")).unwrap();
    tch::no_grad(|| {
        for (dense, name) in [(Dense::Values, "values"), (Dense::Tokens, "tokens")] {
            let (pooled, patches) = clip.vision.forward(&expected["images"], dense, None);
            agree("pooled", &pooled, &expected["pooled"]);
            agree(name, &patches, &expected[name]);
        }
        agree("texts", &clip.text.forward(&rows_of(&expected), Device::Cpu), &expected["texts"]);
    });
    assert!((clip.logit_scale.double_value(&[]) - 2.5).abs() < 1e-3);
}

#[test]
fn hugging_face_naming_agrees_with_transformers() {
    compare(&golden("hugging_face.safetensors"));
}

#[test]
fn openai_naming_agrees_with_transformers() {
    compare(&golden("openai.safetensors"));
}

/// OpenAI's own files: TorchScript archives of half-precision weights.
#[test]
fn a_torchscript_archive_agrees_with_transformers() {
    compare(&golden("torchscript.pt"));
}

/// open_clip's models with a custom text tower prefix its parameters, and carry a mask.
#[test]
fn open_clip_naming_agrees_with_transformers() {
    let mut tensors = Tensors::new();
    for (name, tensor) in checkpoint::read(&golden("openai.safetensors")).unwrap() {
        let text = !name.starts_with("visual.") && name != "logit_scale";
        tensors.insert(if text { format!("text.{name}") } else { name }, tensor);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("open_clip.safetensors");
    checkpoint::write(&file, &tensors, Kind::Float, &Default::default()).unwrap();
    compare(&file);
}

/// A modified ResNet, against open_clip: numbers made by tests/golden/clip/make_resnet.py.
#[test]
fn a_resnet_agrees_with_open_clip() {
    let (_store, clip) =
        weights::load(&golden("resnet.safetensors"), weights::Settings::default(), Device::Cpu).unwrap();
    assert_eq!(clip.config.resnet, Some([2, 1, 1, 2]));
    assert_eq!((clip.config.image_size, clip.config.grid(), clip.config.embed_dim), (64, 2, 64));
    let expected = checkpoint::read(&golden("resnet_expected.safetensors")).unwrap();
    let Tower::ResNet(tower) = &clip.vision else { panic!("it has a ResNet") };
    tch::no_grad(|| {
        let maps = tower.maps(&expected["images"], false, None);
        agree("layer2", &maps[1], &expected["layer2"]);
        agree("layer4", &maps[3], &expected["layer4"]);
        let (pooled, dense) = clip.vision.forward(&expected["images"], Dense::Values, None);
        agree("pooled", &pooled, &expected["pooled"]);
        agree("dense", &dense, &expected["dense"]);
        agree("texts", &clip.text.forward(&rows_of(&expected), Device::Cpu), &expected["texts"]);
    });
}

/// Positions for another grid, as open_clip makes them: the class token's stays.
#[test]
fn positions_are_interpolated_for_other_sizes() {
    let expected = checkpoint::read(&golden("positions.safetensors")).unwrap();
    for (before, after) in [(7, 13), (7, 5), (3, 3)] {
        let positions = formula::weight(&format!("positions {before}"), &[1 + before * before, 16]);
        for (antialias, word) in [(true, "True"), (false, "False")] {
            let name = format!("{before}.{after}.{word}");
            agree(&name, &weights::interpolated(&positions, before, after, antialias), &expected[&name]);
        }
    }
    let settings = weights::Settings { image_size: Some(80), ..Default::default() };
    let (_store, clip) = weights::load(&golden("openai.safetensors"), settings, Device::Cpu).unwrap();
    assert_eq!((clip.config.image_size, clip.config.grid()), (80, 5));
    let images = Tensor::zeros([1, 3, 80, 80], (Kind::Float, Device::Cpu));
    assert_eq!(clip.vision.forward(&images, Dense::Values, None).1.size(), [1, 25, 32]);
    let settings = weights::Settings { image_size: Some(50), ..Default::default() };
    let refused = weights::load(&golden("openai.safetensors"), settings, Device::Cpu).unwrap_err().to_string();
    assert!(refused.contains("a multiple of 16"), "{refused}");
}

#[test]
fn wrong_checkpoints_are_refused_with_the_file_and_the_parameter() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weights.safetensors");
    let refused = |tensors: &Tensors| {
        checkpoint::write(&file, tensors, Kind::Float, &Default::default()).unwrap();
        let text = weights::load(&file, weights::Settings::default(), Device::Cpu).unwrap_err().to_string();
        assert!(text.contains("weights.safetensors"), "{text}");
        text
    };
    let whole = || checkpoint::read(&golden("openai.safetensors")).unwrap();
    let mut missing = whole();
    missing.remove("ln_final.bias");
    assert!(refused(&missing).contains("missing: `ln_final.bias`"));
    let mut unknown = whole();
    unknown.insert("visual.extra".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
    assert!(refused(&unknown).contains("unknown parameters: `visual.extra`"));
    let mut wrong = whole();
    wrong.insert("visual.ln_pre.weight".into(), Tensor::zeros([7], (Kind::Float, Device::Cpu)));
    assert!(refused(&wrong).contains("`visual.ln_pre.weight` has shape [7]"));
    let mut grid = whole();
    grid.insert("visual.positional_embedding".into(), Tensor::zeros([9, 128], (Kind::Float, Device::Cpu)));
    assert!(refused(&grid).contains("not a square grid"));
}

#[test]
fn files_that_lie_about_their_content_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weights.safetensors");
    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        weights::load(&file, weights::Settings::default(), Device::Cpu).unwrap_err().to_string()
    };
    assert!(refused(b"").contains("not a whole safetensors file"));
    let whole = std::fs::read(golden("openai.safetensors")).unwrap();
    assert!(refused(&whole[..whole.len() / 2]).contains("not a whole safetensors file"));
    // A header that claims to be longer than the file.
    let mut long = whole;
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refused(&long).contains("not a whole safetensors file"));
    assert!(refused(b"PK\x03\x04 a zip archive of pickles").contains("not a whole archive"));
    assert!(refused(&[0x80, 2, b'.']).contains("a bare pickle is not read"));
    let plain = std::fs::read(golden("plain.pt")).unwrap();
    assert!(refused(&plain).contains("no TorchScript archive"), "{}", refused(&plain));
    let script = std::fs::read(golden("torchscript.pt")).unwrap();
    for length in [script.len() / 3, script.len() - 100] {
        assert!(refused(&script[..length]).contains("not a whole archive"));
    }
}

/// Real weights are loaded the same way; which file, the environment says.
#[test]
fn a_published_checkpoint_loads() {
    let Some(file) = std::env::var_os("SITELINE_CLIP_WEIGHTS") else {
        eprintln!("SKIPPED: SITELINE_CLIP_WEIGHTS names no safetensors file of a published CLIP");
        return;
    };
    let (_store, clip) = weights::load(Path::new(&file), weights::Settings::default(), Device::Cpu).unwrap();
    let prompts = ["A polyp in an endoscopic image", "An endoscopy image with mucus"];
    let texts = clip.embed_texts(&prompts).unwrap();
    assert_eq!(texts.size(), [2, clip.config.embed_dim]);
    let side = clip.config.image_size;
    let images = Tensor::randn([1, 3, side, side], (Kind::Float, Device::Cpu));
    let (pooled, dense) = tch::no_grad(|| clip.vision.forward(&images, Dense::Values, None));
    assert_eq!(pooled.size(), [1, clip.config.embed_dim]);
    assert_eq!(dense.size(), [1, clip.config.grid() * clip.config.grid(), clip.config.embed_dim]);
    assert!(dense.isfinite().all().int64_value(&[]) == 1);
}
