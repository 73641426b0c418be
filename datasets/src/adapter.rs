//! A site's files to samples: which image goes with which mask, of which class and patient.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

use crate::DatasetError;

/// One image with its mask, class and patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The image's stem.
    pub id: String,
    /// The image file.
    pub image: PathBuf,
    /// The mask file.
    pub mask: PathBuf,
    /// The lesion's class, if the site says.
    pub class: Option<String>,
    /// The patient, qualified by the site or by its group: `kvasir/17`.
    pub patient: String,
    /// A sentence about the image, if the site has one.
    pub prompt: Option<String>,
}

/// A site's settings, as the manifest gives them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SiteSettings {
    /// Where the class comes from.
    pub class: Option<Attribute>,
    /// Where the patient comes from.
    pub patient: Option<Attribute>,
    /// Where the sentence comes from.
    pub prompt: Option<Attribute>,
    /// The column of stems in the site's table.
    pub key: Option<String>,
    /// The group of sites that share patient numbers.
    pub patient_group: Option<String>,
    /// How many bits perceptual hashes of one patient's images may differ in, where images are compared.
    pub similar: Option<u32>,
    /// `fail` or `leave-out`.
    pub on_bad_file: OnBadFile,
}

/// Where an attribute comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Attribute {
    /// The same for all.
    Fixed(String),
    /// The first group of a regular expression over the stem.
    Name {
        /// The expression.
        name: String,
    },
    /// A column of the site's table.
    Column {
        /// Its name.
        column: String,
    },
}

/// What becomes of a file that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadFile {
    /// All fails.
    #[default]
    Fail,
    /// The sample is left out and listed.
    LeaveOut,
}

/// The files of a site that were paired already.
#[derive(Clone, Debug, Default)]
pub struct SiteFiles {
    /// Image by stem.
    pub images: BTreeMap<String, PathBuf>,
    /// Mask by stem.
    pub masks: BTreeMap<String, PathBuf>,
    /// The site's table.
    pub table: Option<PathBuf>,
}

/// The samples of a site in the order of their ids.
///
/// # Errors
/// An attribute that cannot be found for some sample.
pub fn samples(site: &str, settings: &SiteSettings, files: &SiteFiles) -> Result<Vec<Sample>, DatasetError> {
    let table = match &files.table {
        Some(path) => Some(Table::read(path, settings.key.as_deref())?),
        None => None,
    };
    let class = Reader::new(site, "class", settings.class.as_ref(), table.as_ref())?;
    let patient = Reader::new(site, "patient", settings.patient.as_ref(), table.as_ref())?;
    let known = |table: &Table| files.images.keys().any(|stem| table.row(stem).is_some());
    if let (Some(Attribute::Column { column }), Some(table)) = (&settings.prompt, &table)
        && !files.images.is_empty()
        && !known(table)
    {
        let reason = format!("it has a `{column}` for no image of the site `{site}`: its key column names other files");
        return Err(DatasetError::Content { path: table.path.clone(), reason });
    }
    let prompt = Reader::new(site, PROMPT, settings.prompt.as_ref(), table.as_ref())?;
    let group = settings.patient_group.as_deref().unwrap_or(site);
    files
        .images
        .iter()
        .map(|(stem, image)| {
            let mask = files
                .masks
                .get(stem)
                .ok_or_else(|| DatasetError::Content { path: image.clone(), reason: "it has no mask".into() })?;
            let patient = patient.of(stem)?.unwrap_or_else(|| stem.clone());
            Ok(Sample {
                id: stem.clone(),
                image: image.clone(),
                mask: mask.clone(),
                class: class.of(stem)?,
                patient: format!("{group}/{patient}"),
                prompt: prompt.of(stem)?,
            })
        })
        .collect()
}

/// The attribute that an image may do without.
const PROMPT: &str = "prompt";

/// A CSV file by its key column.
struct Table {
    path: PathBuf,
    columns: Vec<String>,
    rows: BTreeMap<String, Vec<String>>,
}

impl Table {
    fn read(path: &Path, key: Option<&str>) -> Result<Self, DatasetError> {
        let bad = |reason: String| DatasetError::Content { path: path.to_owned(), reason };
        let mut reader = csv::Reader::from_path(path).map_err(|e| bad(e.to_string()))?;
        let columns: Vec<String> =
            reader.headers().map_err(|e| bad(e.to_string()))?.iter().map(str::to_owned).collect();
        let place = match key {
            None => 0,
            Some(key) => columns
                .iter()
                .position(|c| c == key)
                .ok_or_else(|| bad(format!("it has no column `{key}`; its columns are {}", columns.join(", "))))?,
        };
        let mut rows = BTreeMap::new();
        for row in reader.records() {
            let row = row.map_err(|e| bad(e.to_string()))?;
            let values: Vec<String> = row.iter().map(str::to_owned).collect();
            let Some(name) = values.get(place) else { continue };
            let name = name.clone();
            if rows.insert(name.clone(), values).is_some() {
                return Err(bad(format!("`{name}` is listed twice")));
            }
        }
        Ok(Self { path: path.to_owned(), columns, rows })
    }
}

impl Table {
    /// The row of a sample. Tables name samples by stems or by files.
    fn row(&self, stem: &str) -> Option<&Vec<String>> {
        let named = |name: &str| Path::new(name).file_stem().is_some_and(|s| s.to_string_lossy() == stem);
        self.rows.get(stem).or_else(|| {
            let mut from = self.rows.range(stem.to_owned()..).take_while(|(name, _)| name.starts_with(stem));
            from.find(|(name, _)| named(name)).map(|(_, row)| row)
        })
    }
}

/// How to read one attribute of a sample.
enum Reader<'a> {
    Absent,
    Fixed(&'a str),
    Name(Regex, &'a str, &'static str),
    /// Table, column, and whether an image may be missing there.
    Column(&'a Table, usize, bool),
}

impl<'a> Reader<'a> {
    fn new(
        site: &str,
        what: &'static str,
        from: Option<&'a Attribute>,
        table: Option<&'a Table>,
    ) -> Result<Self, DatasetError> {
        match from {
            None => Ok(Self::Absent),
            Some(Attribute::Fixed(word)) => Ok(Self::Fixed(word)),
            Some(Attribute::Name { name }) => {
                let regex = Regex::new(name)
                    .map_err(|e| DatasetError::Settings(format!("`{what}` of the site `{site}`: {e}")))?;
                if regex.captures_len() < 2 {
                    let message = format!(
                        "`{what}` of the site `{site}`: `{name}` has no group; write `({name})` to use all of it"
                    );
                    return Err(DatasetError::Settings(message));
                }
                Ok(Self::Name(regex, name, what))
            }
            Some(Attribute::Column { column }) => {
                let table = table.ok_or_else(|| {
                    DatasetError::Settings(format!(
                        "`{what}` of the site `{site}` is a column, but the site names no `table`"
                    ))
                })?;
                let place = table.columns.iter().position(|c| c == column).ok_or_else(|| DatasetError::Content {
                    path: table.path.clone(),
                    reason: format!("it has no column `{column}`; its columns are {}", table.columns.join(", ")),
                })?;
                // Sentences are often there for some images alone; the others have a class's prompt in their place.
                Ok(Self::Column(table, place, what == PROMPT))
            }
        }
    }

    fn of(&self, stem: &str) -> Result<Option<String>, DatasetError> {
        match self {
            Self::Absent => Ok(None),
            Self::Fixed(word) => Ok(Some((*word).to_owned())),
            Self::Name(regex, text, what) => match regex.captures(stem).and_then(|c| c.get(1)) {
                Some(group) => Ok(Some(group.as_str().to_owned())),
                None => Err(DatasetError::Settings(format!(
                    "the {what} of `{stem}` cannot be read: `{text}` does not match"
                ))),
            },
            Self::Column(table, place, may_be_missing) => {
                let row = match table.row(stem) {
                    Some(row) => row,
                    None if *may_be_missing => return Ok(None),
                    None => {
                        let reason = format!("it has no row for `{stem}`");
                        return Err(DatasetError::Content { path: table.path.clone(), reason });
                    }
                };
                Ok(row.get(*place).filter(|value| !value.is_empty()).cloned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(stems: &[&str], table: Option<PathBuf>) -> SiteFiles {
        let paths =
            |dir: &str| stems.iter().map(|s| ((*s).to_owned(), PathBuf::from(format!("{dir}/{s}.png")))).collect();
        SiteFiles { images: paths("i"), masks: paths("m"), table }
    }

    #[test]
    fn attributes_come_from_names_and_tables() {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("t.csv");
        std::fs::write(&table, "file,kind\np1_a.png,polyp\np2_b.png,cyst\n").unwrap();
        let settings: SiteSettings =
            serde_json::from_str(r#"{"class": {"column": "kind"}, "patient": {"name": "^(p\\d+)_"}}"#).unwrap();
        let found = samples("A", &settings, &files(&["p1_a", "p2_b"], Some(table.clone()))).unwrap();
        assert_eq!((found[0].class.as_deref(), found[0].patient.as_str()), (Some("polyp"), "A/p1"));
        assert_eq!((found[1].class.as_deref(), found[1].patient.as_str()), (Some("cyst"), "A/p2"));
        let error = samples("A", &settings, &files(&["p3_c"], Some(table.clone()))).unwrap_err().to_string();
        assert!(error.contains("no row for `p3_c`"), "{error}");
        // A sentence may be missing: a class's prompt takes its place.
        let settings: SiteSettings = serde_json::from_str(r#"{"prompt": {"column": "kind"}}"#).unwrap();
        let found = samples("A", &settings, &files(&["p1_a", "p3_c"], Some(table))).unwrap();
        assert_eq!((found[0].prompt.as_deref(), found[1].prompt.as_deref()), (Some("polyp"), None));
    }

    #[test]
    fn without_a_patient_every_image_is_one() {
        let found = samples("A", &SiteSettings::default(), &files(&["x", "y"], None)).unwrap();
        assert_eq!((found[0].patient.as_str(), found[1].patient.as_str()), ("A/x", "A/y"));
    }
}
