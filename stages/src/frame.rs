//! Parquet files of samples, features and scores: their columns, and how to read and write them.
//!
//! Every file carries key-value metadata that names what it was made from. Floats are 32-bit; dense features are a fixed-size
//! list of `grid * grid * d` of them, position by position, row by row. Row groups are small enough to be read in part.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, RecordBatch, RecordBatchReader,
    StringArray,
};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::error::{Result, StageError};

/// Rows of a row group.
pub const ROW_GROUP: usize = 64;

/// Writes record batches of one schema, each of at most [`ROW_GROUP`] rows, with notes in the file's metadata.
pub struct Writer {
    path: PathBuf,
    schema: Arc<Schema>,
    inner: ArrowWriter<File>,
}

impl Writer {
    /// Starts a file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn new(path: &Path, schema: Schema, notes: &[(&str, String)]) -> Result<Self> {
        let file = File::create(path).map_err(StageError::io(path))?;
        let notes = notes.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect();
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(ROW_GROUP))
            .set_created_by("siteline".to_owned())
            .set_key_value_metadata(Some(notes));
        for field in schema.fields() {
            if let DataType::FixedSizeList(item, _) = field.data_type() {
                // Bytes of one significance side by side: floats that compress at all compress best this way.
                let column = parquet::schema::types::ColumnPath::new(vec![
                    field.name().clone(),
                    "list".to_owned(),
                    item.name().clone(),
                ]);
                properties = properties
                    .set_column_dictionary_enabled(column.clone(), false)
                    .set_column_encoding(column, Encoding::BYTE_STREAM_SPLIT);
            }
        }
        let schema = Arc::new(schema);
        let inner = ArrowWriter::try_new(file, schema.clone(), Some(properties.build()))
            .map_err(|e| StageError::data(path, e))?;
        Ok(Self { path: path.to_owned(), schema, inner })
    }

    /// Starts a file with the columns and the notes of another.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn like(path: &Path, other: &Reader) -> Result<Self> {
        let own = |(key, _): &(&String, &String)| *key != "ARROW:schema";
        let notes: Vec<(&str, String)> =
            other.notes.iter().filter(own).map(|(key, value)| (key.as_str(), value.clone())).collect();
        let schema = other.batches.schema();
        Self::new(path, Schema::new(schema.fields().clone()), &notes)
    }

    /// Adds rows.
    ///
    /// # Errors
    /// Columns that do not fit the schema, a file that cannot be written.
    pub fn write(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let batch = RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| StageError::data(&self.path, e))?;
        self.inner.write(&batch).map_err(|e| StageError::data(&self.path, e))
    }

    /// Ends the file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn finish(self) -> Result<()> {
        let path = self.path;
        self.inner.close().map(|_| ()).map_err(|e| StageError::data(&path, e))
    }
}

/// A file that was opened for reading.
pub struct Reader {
    path: PathBuf,
    notes: BTreeMap<String, String>,
    batches: parquet::arrow::arrow_reader::ParquetRecordBatchReader,
}

impl Reader {
    /// Opens a file, all columns or those named.
    ///
    /// # Errors
    /// A file that is no whole Parquet file.
    pub fn open(path: &Path, columns: Option<&[&str]>) -> Result<Self> {
        let bad = |e: parquet::errors::ParquetError| StageError::data(path, format!("not a whole Parquet file: {e}"));
        let file = File::open(path).map_err(StageError::io(path))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(bad)?.with_batch_size(ROW_GROUP);
        let notes = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
        let notes = notes.into_iter().filter_map(|note| note.value.map(|value| (note.key, value))).collect();
        let builder = match columns {
            None => builder,
            Some(names) => {
                let mask = parquet::arrow::ProjectionMask::columns(builder.parquet_schema(), names.iter().copied());
                builder.with_projection(mask)
            }
        };
        Ok(Self { path: path.to_owned(), notes, batches: builder.build().map_err(bad)? })
    }

    /// A note of the file's metadata.
    ///
    /// # Errors
    /// A file without it.
    pub fn note<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let bad = || StageError::data(&self.path, format!("its metadata has no usable `{name}`"));
        self.notes.get(name).ok_or_else(bad)?.parse().map_err(|_| bad())
    }

    /// The next rows.
    ///
    /// # Errors
    /// Damaged content.
    pub fn next_batch(&mut self) -> Result<Option<Batch<'_>>> {
        match self.batches.next() {
            None => Ok(None),
            Some(Ok(batch)) => Ok(Some(Batch { path: &self.path, batch })),
            Some(Err(e)) => Err(StageError::data(&self.path, format!("not a whole Parquet file: {e}"))),
        }
    }
}

/// Some rows of a file.
pub struct Batch<'a> {
    path: &'a Path,
    batch: RecordBatch,
}

impl Batch<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// Its columns, one of them replaced.
    pub fn with(&self, name: &str, values: ArrayRef) -> Vec<ArrayRef> {
        let schema = self.batch.schema();
        let columns = self.batch.columns().iter().zip(schema.fields());
        columns.map(|(column, field)| if field.name() == name { values.clone() } else { column.clone() }).collect()
    }

    fn column(&self, name: &str) -> Result<&ArrayRef> {
        self.batch.column_by_name(name).ok_or_else(|| StageError::data(self.path, format!("it has no column `{name}`")))
    }

    fn wrong(&self, name: &str) -> StageError {
        StageError::data(self.path, format!("its column `{name}` has another type than expected"))
    }

    /// A column of texts.
    ///
    /// # Errors
    /// An absent column, or one of another type.
    pub fn texts(&self, name: &str) -> Result<Vec<Option<String>>> {
        let column = self.column(name)?.as_string_opt::<i32>().ok_or_else(|| self.wrong(name))?;
        Ok(column.iter().map(|text| text.map(str::to_owned)).collect())
    }

    /// A column of 64-bit floats.
    ///
    /// # Errors
    /// An absent column, or one of another type.
    pub fn numbers(&self, name: &str) -> Result<Vec<Option<f64>>> {
        let column = self.column(name)?.as_primitive_opt::<Float64Type>().ok_or_else(|| self.wrong(name))?;
        Ok(column.iter().collect())
    }

    /// A column of byte strings of one length, one after the other.
    ///
    /// # Errors
    /// An absent column, or one of another type.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let column = self.column(name)?.as_fixed_size_binary_opt().ok_or_else(|| self.wrong(name))?;
        let width = column.value_length() as usize;
        Ok(&column.value_data()[column.offset() * width..(column.offset() + column.len()) * width])
    }

    /// A column of lists of 32-bit floats of one length, one after the other, without a copy.
    ///
    /// # Errors
    /// An absent column, or one of another type.
    pub fn floats(&self, name: &str) -> Result<&[f32]> {
        let column = self.column(name)?.as_fixed_size_list_opt().ok_or_else(|| self.wrong(name))?;
        let values = column.values().as_primitive_opt::<Float32Type>().ok_or_else(|| self.wrong(name))?;
        let width = column.value_length() as usize;
        Ok(&values.values()[column.offset() * width..(column.offset() + column.len()) * width])
    }
}

/// A text column's field.
pub fn text_field(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, nullable)
}

/// The field of a column of `width` floats each.
pub fn floats_field(name: &str, width: usize) -> Field {
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    Field::new(name, DataType::FixedSizeList(item, width as i32), false)
}

/// The field of a column of `width` bytes each.
pub fn bytes_field(name: &str, width: usize) -> Field {
    Field::new(name, DataType::FixedSizeBinary(width as i32), false)
}

/// A column of texts.
pub fn texts<S: AsRef<str>>(values: impl IntoIterator<Item = Option<S>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<StringArray>())
}

/// A column of `values.len() / width` lists of floats.
///
/// # Errors
/// A number of values that is no multiple of `width`.
pub fn floats(width: usize, values: Vec<f32>) -> Result<ArrayRef> {
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let list = FixedSizeListArray::try_new(item, width as i32, Arc::new(Float32Array::from(values)), None);
    Ok(Arc::new(list.map_err(|e| StageError::Request(e.to_string()))?))
}

/// A column of byte strings of one length.
///
/// # Errors
/// Strings of differing lengths.
pub fn bytes<B: AsRef<[u8]>>(values: impl Iterator<Item = B>) -> Result<ArrayRef> {
    let array = FixedSizeBinaryArray::try_from_iter(values).map_err(|e| StageError::Request(e.to_string()))?;
    Ok(Arc::new(array))
}

/// Bytes that a mask of `side` x `side` pixels takes, one bit a pixel.
pub fn packed_length(side: u32) -> usize {
    ((side * side) as usize).div_ceil(8)
}

/// Bytes of 0 and 255 to bits, the first pixel in the lowest bit.
pub fn pack(mask: &[u8]) -> Vec<u8> {
    mask.chunks(8).map(|bits| bits.iter().enumerate().fold(0, |byte, (i, b)| byte | (u8::from(*b > 0) << i))).collect()
}

/// Bits to 0 and 1, one byte a pixel.
pub fn unpack(packed: &[u8], pixels: usize) -> impl Iterator<Item = u8> + '_ {
    (0..pixels).map(|i| (packed[i / 8] >> (i % 8)) & 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_survive_packing() {
        let mask: Vec<u8> = (0..81u32).map(|i| if i * i % 7 < 3 { 255 } else { 0 }).collect();
        let packed = pack(&mask);
        assert_eq!(packed.len(), packed_length(9));
        assert!(unpack(&packed, 81).eq(mask.iter().map(|b| u8::from(*b > 0))));
    }
}
