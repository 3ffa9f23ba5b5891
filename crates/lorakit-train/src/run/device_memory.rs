//! The memory of the device that a base computes on, and the memory that training needs.

use crate::run::cgroup_memory::CgroupMemory;
use candle_core::Device;
use lorakit_model::Base;

/// The memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Total.
    pub total: u64,
    /// Available: not used by others. The base's own weights count as available.
    pub available: u64,
}

impl DeviceMemory {
    /// The memory of the base's device; None if the system does not report it.
    pub fn of_device(base: &Base) -> Option<Self> {
        let memory = if base.device().is_cpu() { of_machine() } else { of_gpu(base.device()) }?;
        // The system can reclaim the pages of a mapped file.
        let used = if base.device().is_cpu() && base.dtype_override().is_none() { 0 } else { base.weight_bytes() };
        Some(Self { available: memory.available + used, ..memory })
    }
}

/// The largest resident set that this process has had, in bytes, with the pages of mapped files; None where the system
/// does not report it.
pub fn peak_resident_bytes() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// What this process holds itself, in bytes: its own memory, and the program's code, of which training reads most sooner or
/// later. Pages of other mapped files, such as a base's, are not among them: how many there are depends on what was read
/// before. None where the system does not report it.
pub(crate) fn process_bytes() -> Option<u64> {
    ["RssAnon:", "VmExe:", "VmLib:"].into_iter().map(|key| kibibytes("/proc/self/status", key)).sum()
}

/// A value that a file of the kernel gives in KiB, in bytes.
fn kibibytes(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory that a pass needs, in bytes: on a CPU the largest resident set of the process, as the kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The process before training: the program, the tokenizer and the rows. Nothing of it is on a GPU.
    pub process: u64,
    /// The base's weights. On a CPU they are mapped: their pages count, but the system can reclaim them.
    pub base: u64,
    /// Values, gradients and moments of the adapters.
    pub adapters: u64,
    /// Values, gradients and moments of the base's own weights, if they are trained.
    pub weights: u64,
    /// Activations of one forward and their gradients.
    pub activations: u64,
}

impl MemoryEstimate {
    /// The same for any process that trains with the same settings and rows: without what this one holds before.
    pub(crate) fn of_any_process(self) -> Self {
        Self { process: 0, ..self }
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.process + self.base + self.adapters + self.weights + self.activations
    }
}

/// The machine's memory, or the limit of this process's control group if that is less.
fn of_machine() -> Option<DeviceMemory> {
    let value = |key| kibibytes("/proc/meminfo", key);
    let machine = DeviceMemory { total: value("MemTotal:")?, available: value("MemAvailable:")? };
    Some(CgroupMemory::of_process().map_or(machine, |group| DeviceMemory {
        total: machine.total.min(group.limit),
        available: machine.available.min(group.available),
    }))
}

/// What CUDA reports.
#[cfg(feature = "cuda")]
fn of_gpu(gpu: &Device) -> Option<DeviceMemory> {
    let (free, total) = gpu.as_cuda_device().ok()?.cuda_stream().context().mem_get_info().ok()?;
    Some(DeviceMemory { total: total as u64, available: free as u64 })
}

/// Nothing is known without CUDA.
#[cfg(not(feature = "cuda"))]
fn of_gpu(_: &Device) -> Option<DeviceMemory> {
    None
}
