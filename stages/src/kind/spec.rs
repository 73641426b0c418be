//! What is the same in every kind's specification, said once.

use siteline_pipeline::protocol::{
    InputSpec, OutputSpec, Purpose, Requirement, Resources, Role, SourceSpec, StageKind,
};

use crate::fingerprint;

/// Kinds that use a GPU where there is one. The others see none, so that GPUs hold what was leased and nothing else.
const WANTS_GPU: [&str; 3] = ["clip-features", "train", "phantom-clip"];

/// Kinds that hand each thread whole images: the number of threads changes no bit. libtorch's own operations add up in another
/// order with another number of threads, so what trains is not among them.
const SCALES: [&str; 3] = ["clip-features", "ingest", "phantoms"];

/// A kind's specification without what is the same for all.
pub struct Spec {
    /// The name in `uses`.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Schema of the parameters.
    pub params: schemars::Schema,
    /// What it reads from other stages.
    pub inputs: Vec<InputSpec>,
    /// What it reads from outside the store.
    pub sources: Vec<SourceSpec>,
    /// What else instances with certain parameters need.
    pub requires: Vec<Requirement>,
    /// What it writes.
    pub outputs: Vec<OutputSpec>,
}

impl From<Spec> for StageKind {
    fn from(spec: Spec) -> Self {
        Self {
            name: spec.name.to_owned(),
            summary: spec.summary.to_owned(),
            params: spec.params.to_value(),
            inputs: spec.inputs,
            sources: spec.sources,
            requires: spec.requires,
            outputs: spec.outputs,
            resources: Resources { gpu: WANTS_GPU.contains(&spec.name).then_some(1), ..Resources::default() },
            scales: SCALES.contains(&spec.name),
            code: fingerprint::of(spec.name),
        }
    }
}

/// An output that other stages read.
pub fn output(path: &str) -> OutputSpec {
    OutputSpec { path: path.to_owned(), purpose: Purpose::Data }
}

/// An input of exactly one artifact, of which `files` are read.
pub fn input(name: &str, role: Role, files: &[&str]) -> InputSpec {
    let files = files.iter().map(|f| (*f).to_owned()).collect();
    InputSpec { name: name.to_owned(), role, files, many: false, optional: false }
}
