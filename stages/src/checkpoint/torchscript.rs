//! Tensors of TorchScript archives, in which OpenAI published CLIP. Their `data.pkl` is a pickle; nothing of it is ever run: a small
//! reader follows the opcodes that describe values, builds inert values, and refuses all else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use tch::{Kind, Tensor};
use zip::ZipArchive;

use super::Tensors;
use crate::error::{Result, StageError};

/// Names deeper than this are no module's.
const DEEPEST: usize = 32;
/// More values than any module describes.
const MOST_VALUES: usize = 4_000_000;
/// More tensors than any module has.
const MOST_TENSORS: usize = 100_000;
/// More brackets within brackets than any description of a module has.
const MOST_NESTED: usize = 1000;

/// Reads every tensor of an archive by its name in the module, floats widened to 32 bits.
///
/// # Errors
/// A file that is no TorchScript archive, with advice; one that is damaged, or describes something unknown.
pub fn read(path: &Path, bytes: &[u8]) -> Result<Tensors> {
    let bad = |reason: String| StageError::data(path, reason);
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| bad(format!("not a whole archive: {e}")))?;
    let names: Vec<String> = archive.file_names().map(str::to_owned).collect();
    let stem = names.iter().find_map(|name| name.strip_suffix("/constants.pkl")).map(str::to_owned);
    let Some(stem) = stem.filter(|stem| names.iter().any(|name| name.starts_with(&format!("{stem}/code/")))) else {
        return Err(bad(
            "a PyTorch archive that is no TorchScript archive: its pickle could run anything and is not read; convert it with safetensors.torch.save_file".into(),
        ));
    };
    let pickle = entry(&mut archive, &format!("{stem}/data.pkl")).map_err(&bad)?;
    let root = Reader::new(&pickle).value().map_err(|reason| bad(format!("its data.pkl: {reason}")))?;
    let mut found = Vec::new();
    collect(&root, String::new(), 0, &mut found).map_err(&bad)?;
    let mut tensors = Tensors::new();
    for (name, stored) in found {
        let bytes = entry(&mut archive, &format!("{stem}/data/{}", stored.key)).map_err(&bad)?;
        tensors.insert(name.clone(), stored.tensor(&bytes).map_err(|reason| bad(format!("`{name}`: {reason}")))?);
    }
    Ok(tensors)
}

fn entry(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str) -> std::result::Result<Vec<u8>, String> {
    let mut file = archive.by_name(name).map_err(|e| format!("`{name}`: {e}"))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| format!("`{name}`: {e}"))?;
    Ok(bytes)
}

/// A tensor as the pickle describes it.
#[derive(Clone, Debug)]
struct Stored {
    kind: Kind,
    key: String,
    offset: i64,
    size: Vec<i64>,
    stride: Vec<i64>,
}

impl Stored {
    fn tensor(&self, bytes: &[u8]) -> std::result::Result<Tensor, String> {
        let width = self.kind.elt_size_in_bytes();
        let count = (bytes.len() / width) as i64;
        // The furthest number that the view reaches must be there.
        let reach = self.size.iter().zip(&self.stride).try_fold(self.offset, |at, (size, stride)| {
            let last = size.checked_sub(1)?.checked_mul(*stride)?;
            (*size > 0 && *stride >= 0).then_some(at.checked_add(last)?)
        });
        // No weight repeats its numbers: a view has no more of them than there are.
        let numbers = self.size.iter().try_fold(1i64, |all, size| all.checked_mul(*size));
        let fits = reach.is_some_and(|reach| reach < count) && numbers.is_some_and(|numbers| numbers <= count);
        if self.size.len() != self.stride.len() || self.offset < 0 || !fits {
            return Err("it reaches beyond its data".into());
        }
        let all = Tensor::f_from_data_size(&bytes[..count as usize * width], &[count], self.kind);
        let view = all.and_then(|all| all.f_as_strided(&self.size, &self.stride, self.offset));
        let view = view.map_err(|e| e.to_string())?.contiguous();
        Ok(if self.kind == Kind::Int64 { view } else { view.to_kind(Kind::Float) })
    }
}

/// A value of a pickle. Nothing in it does anything.
#[derive(Clone, Debug)]
enum Value {
    Nothing,
    Int(i64),
    Text(String),
    Tuple(Rc<Vec<Value>>),
    List(Rc<RefCell<Vec<Value>>>),
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    Global(String),
    /// An instance of a class, with its state.
    Object(Rc<RefCell<Option<Value>>>),
    Storage(Kind, String),
    Tensor(Rc<Stored>),
    Mark,
}

/// Names and tensors of a module, its submodules included.
fn collect(
    value: &Value,
    name: String,
    depth: usize,
    found: &mut Vec<(String, Stored)>,
) -> std::result::Result<(), String> {
    if depth > DEEPEST || found.len() > MOST_TENSORS {
        return Err("modules are nested too deep, or are too many".into());
    }
    match value {
        Value::Tensor(stored) => found.push((name, stored.as_ref().clone())),
        Value::Object(state) => {
            if let Some(Value::Dict(entries)) = state.borrow().as_ref() {
                for (key, value) in entries.borrow().iter() {
                    let Value::Text(key) = key else { continue };
                    let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    collect(value, name, depth + 1, found)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    /// Steps so far, and tuples that were made of one tuple after the other.
    steps: usize,
    nested: usize,
}

type Step<T> = std::result::Result<T, String>;

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, stack: Vec::new(), memo: HashMap::new(), steps: 0, nested: 0 }
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or("it is cut short")?;
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }

    fn number(&mut self, width: usize) -> Step<u32> {
        Ok(self.take(width)?.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("a line without an end")?;
        let text = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(text)
    }

    fn pop(&mut self) -> Step<Value> {
        self.stack.pop().ok_or_else(|| "a value is missing".into())
    }

    fn top(&self) -> Step<Value> {
        self.stack.last().cloned().ok_or_else(|| "a value is missing".into())
    }

    fn since_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark)).ok_or("a mark is missing")?;
        let values = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(values)
    }

    fn value(mut self) -> Step<Value> {
        loop {
            let opcode = self.take(1)?[0];
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Step<()> {
        self.steps += 1;
        self.nested = if matches!(opcode, 0x85..=0x87 | b't') { self.nested + 1 } else { 0 };
        if self.steps > MOST_VALUES || self.nested > MOST_NESTED {
            return Err("it describes too much".into());
        }
        let value = match opcode {
            // PROTO
            0x80 => return self.take(1).map(|_| ()),
            b'c' => Value::Global(format!("{} {}", self.line()?, self.line()?)),
            b'(' => Value::Mark,
            b'N' => Value::Nothing,
            // NEWTRUE, NEWFALSE
            0x88 | 0x89 => Value::Int(i64::from(opcode == 0x88)),
            b'K' => Value::Int(i64::from(self.number(1)?)),
            b'M' => Value::Int(i64::from(self.number(2)?)),
            b'J' => Value::Int(i64::from(self.number(4)? as i32)),
            // LONG1
            0x8a => {
                let length = self.number(1)? as usize;
                let bytes = self.take(length)?;
                if length > 8 {
                    return Err("a number is too large".into());
                }
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                let fill = if negative { -1i64 } else { 0 };
                Value::Int(bytes.iter().rev().fold(fill, |number, byte| number << 8 | i64::from(*byte)))
            }
            // BINFLOAT: no module's parameter is one.
            b'G' => self.take(8).map(|_| Value::Nothing)?,
            b'X' => {
                let length = self.number(4)? as usize;
                Value::Text(String::from_utf8_lossy(self.take(length)?).into_owned())
            }
            b')' => Value::Tuple(Rc::default()),
            b']' => Value::List(Rc::default()),
            b'}' => Value::Dict(Rc::default()),
            b't' => Value::Tuple(Rc::new(self.since_mark()?)),
            // TUPLE1 to TUPLE3
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(count).ok_or("a value is missing")?;
                Value::Tuple(Rc::new(self.stack.split_off(from)))
            }
            b'q' | b'r' => {
                let key = self.number(if opcode == b'q' { 1 } else { 4 })?;
                self.memo.insert(key, self.top()?);
                return Ok(());
            }
            b'h' | b'j' => {
                let key = self.number(if opcode == b'h' { 1 } else { 4 })?;
                self.memo.get(&key).cloned().ok_or("an unknown reference")?
            }
            b'a' | b'e' | b's' | b'u' => return self.fill(opcode),
            // NEWOBJ: class and arguments.
            0x81 => {
                self.pop()?;
                self.pop()?;
                Value::Object(Rc::default())
            }
            b'b' => {
                let state = self.pop()?;
                if let Value::Object(object) = self.top()? {
                    *object.borrow_mut() = Some(state);
                }
                return Ok(());
            }
            b'Q' => storage(&self.pop()?)?,
            b'R' => {
                let arguments = self.pop()?;
                rebuilt(&self.pop()?, &arguments)?
            }
            other => return Err(format!("the opcode {other:#04x} does not describe a value")),
        };
        self.stack.push(value);
        Ok(())
    }

    /// APPEND, APPENDS, SETITEM, SETITEMS.
    fn fill(&mut self, opcode: u8) -> Step<()> {
        let values = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        match self.top()? {
            Value::List(list) => list.borrow_mut().extend(values),
            Value::Dict(entries) => {
                let pairs = values.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
                entries.borrow_mut().extend(pairs);
            }
            _ => return Err("something is put into what holds nothing".into()),
        }
        Ok(())
    }
}

/// `('storage', torch.HalfStorage, '0', 'cpu', 1024)`.
fn storage(id: &Value) -> Step<Value> {
    let unknown = || "an unknown kind of storage".to_owned();
    let Value::Tuple(parts) = id else { return Err(unknown()) };
    let (Some(Value::Global(class)), Some(Value::Text(key))) = (parts.get(1), parts.get(2)) else {
        return Err(unknown());
    };
    let kind = match class.rsplit([' ', '.']).next() {
        Some("HalfStorage") => Kind::Half,
        Some("FloatStorage") => Kind::Float,
        Some("DoubleStorage") => Kind::Double,
        Some("BFloat16Storage") => Kind::BFloat16,
        Some("LongStorage") => Kind::Int64,
        _ => return Err(format!("a storage of `{class}`")),
    };
    if key.contains(['/', '\\']) {
        return Err(unknown());
    }
    Ok(Value::Storage(kind, key.clone()))
}

/// What a function of the pickle would have made: tensors are described, all else is nothing.
fn rebuilt(function: &Value, arguments: &Value) -> Step<Value> {
    let (Value::Global(name), Value::Tuple(parts)) = (function, arguments) else { return Ok(Value::Nothing) };
    if name == "collections OrderedDict" {
        return Ok(Value::Dict(Rc::default()));
    }
    if !name.starts_with("torch._utils _rebuild_tensor") {
        return Ok(Value::Nothing);
    }
    let whole = |value: Option<&Value>| match value {
        Some(Value::Tuple(numbers)) => {
            let number = |value: &Value| if let Value::Int(number) = value { Some(*number) } else { None };
            numbers.iter().map(number).collect::<Option<Vec<_>>>()
        }
        _ => None,
    };
    match (parts.first(), parts.get(1), whole(parts.get(2)), whole(parts.get(3))) {
        (Some(Value::Storage(kind, key)), Some(Value::Int(offset)), Some(size), Some(stride)) => {
            Ok(Value::Tensor(Rc::new(Stored { kind: *kind, key: key.clone(), offset: *offset, size, stride })))
        }
        _ => Err("a tensor that is described in an unknown way".into()),
    }
}
