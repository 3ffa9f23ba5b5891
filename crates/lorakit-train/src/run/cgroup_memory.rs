//! The memory that a control group leaves to this process: the limit of a container, or of a job of Slurm or Kubernetes.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel shows control groups.
const ROOT: &str = "/sys/fs/cgroup";

/// The memory of a control group, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CgroupMemory {
    /// The most that its processes may hold.
    pub limit: u64,
    /// What of that they do not.
    pub available: u64,
}

impl CgroupMemory {
    /// The tightest limit of the control groups that this process is in, and what they leave; None without a limit.
    pub fn of_process() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        tightest(&groups, Path::new(ROOT))
    }

    fn tighter(self, other: Self) -> Self {
        Self { limit: self.limit.min(other.limit), available: self.available.min(other.available) }
    }
}

/// The files of a version of control groups.
struct Version {
    /// Its folder below the root.
    root: &'static str,
    limit: &'static str,
    used: &'static str,
    /// What `memory.stat` calls pages of files, such as those of a mapped base, which the kernel can reclaim.
    reclaimable: [&'static str; 2],
}

const V1: Version = Version {
    root: "memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file"],
};
const V2: Version =
    Version { root: "", limit: "memory.max", used: "memory.current", reclaimable: ["inactive_file", "active_file"] };

/// As [`CgroupMemory::of_process`], with the text of `/proc/self/cgroup` (cgroups(7)): a line `HIERARCHY:CONTROLLERS:PATH`
/// for each hierarchy, of which version 2 has one without controllers.
fn tightest(groups: &str, root: &Path) -> Option<CgroupMemory> {
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let version = match controllers {
            "" => V2,
            _ if controllers.split(',').any(|name| name == "memory") => V1,
            _ => return None,
        };
        limit_of_ancestors(&version, &root.join(version.root), path)
    });
    limits.reduce(CgroupMemory::tighter)
}

/// The tightest limit of a group and those above it. In a container the path may be the host's, which is not there: its
/// own group is the root then.
fn limit_of_ancestors(version: &Version, root: &Path, path: &str) -> Option<CgroupMemory> {
    let group: PathBuf = root.join(path.trim_start_matches('/'));
    let groups = group.ancestors().take_while(|folder| folder.starts_with(root));
    groups.filter_map(|folder| limit_of(version, folder)).reduce(CgroupMemory::tighter)
}

/// The limit of one group; None if it has none.
fn limit_of(version: &Version, group: &Path) -> Option<CgroupMemory> {
    let text = |file| fs::read_to_string(group.join(file)).ok();
    // "max" in version 2; in version 1 about 2^63.
    let limit: u64 = text(version.limit)?.trim().parse().ok().filter(|&limit| limit < 1 << 62)?;
    let used: u64 = text(version.used)?.trim().parse().ok()?;
    let stat = text("memory.stat").unwrap_or_default();
    let fields = stat.lines().filter_map(|line| line.split_once(' '));
    let reclaimable = fields.filter(|(name, _)| version.reclaimable.contains(name));
    let reclaimable: u64 = reclaimable.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum();
    let available = limit.saturating_sub(used.saturating_sub(reclaimable)).min(limit);
    Some(CgroupMemory { limit, available })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: u64 = 1 << 20;

    fn write(folder: &Path, files: &[(&str, String)]) {
        fs::create_dir_all(folder).unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn the_tightest_group_of_version_2_decides() {
        let root = tempfile::tempdir().unwrap();
        let v2 = |limit: &str, used: u64, inactive: u64| {
            [
                ("memory.max", format!("{limit}\n")),
                ("memory.current", format!("{}\n", used * MIB)),
                (
                    "memory.stat",
                    format!("anon 1\ninactive_file {}\nactive_file {}\n", inactive * MIB / 2, inactive * MIB / 2),
                ),
            ]
        };
        let job = root.path().join("slurm/job_7");
        write(&job.join("step_0"), &v2("max", 10, 0));
        write(&job, &v2(&(4096 * MIB).to_string(), 1024, 512));
        write(&root.path().join("slurm"), &v2(&(8192 * MIB).to_string(), 6144, 0));
        let found = tightest("0::/slurm/job_7/step_0\n", root.path());
        assert_eq!(found, Some(CgroupMemory { limit: 4096 * MIB, available: 2048 * MIB }));
        assert_eq!(tightest("0::/other\n", root.path()), None);
        assert_eq!(tightest("", root.path()), None);
    }

    #[test]
    fn the_memory_controller_of_version_1_decides_and_may_have_no_limit() {
        let root = tempfile::tempdir().unwrap();
        let v1 = |limit: u64, used: u64| {
            [
                ("memory.limit_in_bytes", limit.to_string()),
                ("memory.usage_in_bytes", used.to_string()),
                ("memory.stat", format!("inactive_file 0\ntotal_inactive_file {MIB}\ntotal_active_file 0\n")),
            ]
        };
        let group = root.path().join("memory/job");
        write(&group, &v1(100 * MIB, 41 * MIB));
        write(&root.path().join("memory"), &v1(9_223_372_036_854_771_712, 500 * MIB));
        let groups = "9:cpu,cpuacct:/job\n8:memory:/job\n0::/\n";
        let expected = CgroupMemory { limit: 100 * MIB, available: 60 * MIB };
        assert_eq!(tightest(groups, root.path()), Some(expected));
        // In a container the path is the host's, and its own group the root.
        assert_eq!(tightest("8:memory:/docker/1a2b\n", root.path()), None);
        write(&root.path().join("memory"), &v1(100 * MIB, 41 * MIB));
        assert_eq!(tightest("8:memory:/docker/1a2b\n", root.path()), Some(expected));
        assert_eq!(tightest("9:cpu,cpuacct:/job\n", root.path()), None);
    }
}
