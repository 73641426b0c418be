//! How busy the machine is: its processors, and the GPUs that a run may use.

use nvml_wrapper::Nvml;

/// Looks now and then.
pub struct Load {
    /// Busy and all time of the processors at the last look.
    before: Option<(u64, u64)>,
    processors: String,
    nvml: Option<Nvml>,
    gpus: Vec<String>,
}

impl Load {
    /// For a run that may use these GPUs.
    pub fn new(gpus: &[String]) -> Self {
        // Without GPUs the driver's library is not looked for.
        let nvml = if gpus.is_empty() { None } else { Nvml::init().ok() };
        Self { before: None, processors: String::new(), nvml, gpus: gpus.to_vec() }
    }

    /// In a few words.
    pub fn text(&mut self) -> String {
        self.look_at_processors();
        let gpus = self.gpus.iter().filter_map(|gpu| self.gpu(gpu));
        std::iter::once(self.processors.clone()).chain(gpus).collect::<Vec<_>>().join("  ")
    }

    fn look_at_processors(&mut self) {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let times: Vec<u64> =
            stat.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
        let all: u64 = times.iter().sum();
        // The fourth and fifth are idle time and waiting for disks.
        let busy = all - times.get(3).copied().unwrap_or(0) - times.get(4).copied().unwrap_or(0);
        if let Some((before, then)) = self.before.replace((busy, all))
            && all > then
        {
            self.processors = format!("CPU {:.0} %", 100.0 * busy.saturating_sub(before) as f64 / (all - then) as f64);
        }
    }

    /// `GPU 0 87 % 21/80 GB`; nothing of one that the driver's library does not know by this name.
    fn gpu(&self, name: &str) -> Option<String> {
        let nvml = self.nvml.as_ref()?;
        let device = match name.parse() {
            Ok(index) => nvml.device_by_index(index),
            Err(_) => nvml.device_by_uuid(name),
        };
        let device = device.ok()?;
        let memory = device.memory_info().ok()?;
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        Some(format!(
            "GPU {name} {} % {:.0}/{:.0} GB",
            device.utilization_rates().ok()?.gpu,
            gigabytes(memory.used),
            gigabytes(memory.total)
        ))
    }
}
