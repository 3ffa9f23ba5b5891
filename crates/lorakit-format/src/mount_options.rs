//! Whether a file system passes flock between machines, from its entry among the mounts.

use std::fs;
use std::path::Path;

/// File systems that are shared, and whose flock the kernel keeps within a machine. BeeGFS's client does so unless
/// `tuneUseGlobalFileLocks` is set in a file of its own, which no mount option shows.
const LOCAL: [&str; 5] = ["beegfs", "fuse.gcsfuse", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"];

/// Options of shared file systems that keep flock within a machine, by the beginning of the file system's name.
const LOCAL_OPTIONS: [(&str, &[&str]); 4] = [
    ("nfs", &["nolock", "local_lock=all", "local_lock=flock"]),
    ("lustre", &["localflock"]),
    ("cifs", &["nobrl"]),
    ("smb3", &["nobrl"]),
];

/// Whether other machines that share `folder` do not see its flocks. Where the system does not tell, they are trusted.
pub(crate) fn keeps_flock_local(folder: &Path) -> bool {
    let (Ok(folder), Ok(mounts)) = (fs::canonicalize(folder), fs::read_to_string("/proc/self/mountinfo")) else {
        return false;
    };
    is_local(&folder, &mounts)
}

/// As [`keeps_flock_local`], with the text of `/proc/self/mountinfo` (proc(5)): the mount point is the fifth field, and
/// after a lone hyphen come the type, the source and the options of the file system.
fn is_local(folder: &Path, mounts: &str) -> bool {
    let entry = |line: &str| {
        let (place, system) = line.split_once(" - ")?;
        let point = place.split(' ').nth(4)?.replace(r"\040", " ");
        let depth = Path::new(&point).components().count();
        folder.starts_with(&point).then(|| (depth, system.to_owned()))
    };
    // Of two mounts at one place the later one is visible.
    let Some((_, system)) = mounts.lines().filter_map(entry).max_by_key(|(depth, _)| *depth) else { return false };
    let mut fields = system.split(' ');
    let (kind, options) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
    let has = |names: &[&str]| options.split(',').any(|option| names.contains(&option));
    LOCAL.contains(&kind) || LOCAL_OPTIONS.iter().any(|(name, local)| kind.starts_with(name) && has(local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_decides() {
        let mounts = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:50 / /home rw shared:2 - nfs4 srv:/home rw,vers=4.2,local_lock=none
41 40 0:51 / /home/my\\040data rw - nfs srv:/data rw,vers=3,nolock,local_lock=all
42 22 0:52 / /mnt/ssh rw - fuse.sshfs host: rw,user_id=0
43 22 0:53 / /scratch rw - lustre 10.0.0.1@tcp:/scratch rw,localflock
44 22 0:54 / /shared rw - lustre 10.0.0.1@tcp:/shared rw,flock
45 22 0:55 / /bee rw - beegfs beegfs_nodev rw,cfgFile=/etc/beegfs/beegfs-client.conf";
        let local = |path: &str| is_local(Path::new(path), mounts);
        assert!(local("/home/my data/library") && local("/mnt/ssh/x") && local("/scratch/x") && local("/bee/x"));
        assert!(!local("/home/me/library") && !local("/tmp") && !local("/shared/x") && !local("/home/my"));
        assert!(!is_local(Path::new("/x"), ""));
    }
}
