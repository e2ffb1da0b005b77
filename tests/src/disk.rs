//! Disks that are small, full, or may not be written to.

use std::path::Path;
use std::process::Command;

/// A file system of its own, as small as it may be.
#[derive(Debug)]
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where mounting is not allowed; then it is said which test was skipped.
    pub fn mount(mib: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "statehouse-test"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            crate::report(format_args!(
                "SKIPPED: {test}: this machine lets nobody mount a small disk, so there is none to fill"
            ));
            return None;
        }
        Some(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Mounts it again in another way, such as `ro` or `size=400m`.
    pub fn remount(&self, how: &str) {
        let how = format!("remount,{how}");
        let done = Command::new("mount").args(["-o", &how]).arg(self.path()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).output());
    }
}
