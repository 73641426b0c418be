//! Tensors from safetensors files and TorchScript archives, and to safetensors files. No pickle is ever run.

mod torchscript;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor, nn};

use crate::error::{Result, StageError};

/// Named tensors, in the order of their names.
pub type Tensors = BTreeMap<String, Tensor>;

/// Reads every tensor of a file, half-precision floats widened to 32 bits.
///
/// # Errors
/// A file that is neither a safetensors file (a lying header included) nor a TorchScript archive, or that holds a type Siteline has
/// no use for.
pub fn read(path: &Path) -> Result<Tensors> {
    let bytes = std::fs::read(path).map_err(StageError::io(path))?;
    if bytes.starts_with(b"PK") {
        return torchscript::read(path, &bytes);
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|e| {
        let pickled = bytes.starts_with(&[0x80]);
        let advice =
            if pickled { "; a bare pickle is not read: convert it with safetensors.torch.save_file" } else { "" };
        StageError::data(path, format!("not a whole safetensors file: {e}{advice}"))
    })?;
    file.tensors().into_iter().map(|(name, view)| Ok((name.clone(), tensor_of(path, &name, &view)?))).collect()
}

/// The notes that [`write`] put into a file.
///
/// # Errors
/// A file that is no whole safetensors file.
pub fn notes(path: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = std::fs::read(path).map_err(StageError::io(path))?;
    // Reading the tensors checks that the file is whole.
    SafeTensors::deserialize(&bytes).map_err(|e| StageError::data(path, e))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| StageError::data(path, e))?;
    let text = header.metadata().as_ref().and_then(|notes| notes.get("siteline"));
    Ok(text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default())
}

fn tensor_of(path: &Path, name: &str, view: &TensorView) -> Result<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        other => {
            return Err(StageError::data(path, format!("tensor `{name}` has type {other:?}, which is not used here")));
        }
    };
    let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
    let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)?;
    Ok(if kind == Kind::Int64 { tensor } else { tensor.to_kind(Kind::Float) })
}

/// Writes tensors in the order of their names, floats as `kind` (32 or 16 bits), so that the same tensors give the same
/// bytes.
///
/// # Errors
/// A file that cannot be written.
pub fn write(path: &Path, tensors: &Tensors, kind: Kind, notes: &BTreeMap<String, String>) -> Result<()> {
    let mut buffers = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let (stored, dtype) = match (tensor.kind(), kind) {
            (Kind::Int64, _) => (Kind::Int64, Dtype::I64),
            (_, Kind::Half) => (Kind::Half, Dtype::F16),
            _ => (Kind::Float, Dtype::F32),
        };
        let tensor = tensor.to_device(Device::Cpu).to_kind(stored).contiguous();
        let mut bytes = vec![0u8; tensor.numel() * stored.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape: Vec<usize> = tensor.size().iter().map(|n| *n as usize).collect();
        buffers.push((name.clone(), dtype, shape, bytes));
    }
    let views = buffers
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| StageError::data(path, e))?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    // The header's notes are a hash map in the crate's interface: more than one would be written in no fixed order.
    let notes = match notes.len() {
        0 => None,
        _ => {
            let text = serde_json::to_string(notes).expect("strings are JSON");
            Some(HashMap::from([("siteline".to_owned(), text)]))
        }
    };
    let bytes = safetensors::tensor::serialize(views, notes).map_err(|e| StageError::data(path, e))?;
    std::fs::write(path, bytes).map_err(StageError::io(path))
}

/// The variables of a store by name.
pub fn of_store(store: &nn::VarStore) -> Tensors {
    store.variables().into_iter().collect()
}

/// Copies `tensors` into the variables of `store`, each into the one of its name.
///
/// # Errors
/// A missing, an unknown, or a wrongly shaped parameter; the first few are named.
pub fn fill(store: &mut nn::VarStore, tensors: &Tensors, path: &Path) -> Result<()> {
    let variables: Tensors = of_store(store);
    let list = |names: Vec<&String>| {
        let shown: Vec<_> = names.iter().take(4).map(|name| format!("`{name}`")).collect();
        let more = names.len().saturating_sub(4);
        format!("{}{}", shown.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() })
    };
    let missing: Vec<_> = variables.keys().filter(|name| !tensors.contains_key(*name)).collect();
    if !missing.is_empty() {
        return Err(StageError::data(path, format!("parameters are missing: {}", list(missing))));
    }
    let unknown: Vec<_> = tensors.keys().filter(|name| !variables.contains_key(*name)).collect();
    if !unknown.is_empty() {
        return Err(StageError::data(path, format!("unknown parameters: {}", list(unknown))));
    }
    for (name, variable) in variables {
        let value = &tensors[&name];
        if value.size() != variable.size() {
            return Err(StageError::data(
                path,
                format!("`{name}` has shape {:?}; the model needs {:?}", value.size(), variable.size()),
            ));
        }
        let mut variable = variable;
        tch::no_grad(|| variable.f_copy_(value))?;
    }
    Ok(())
}
