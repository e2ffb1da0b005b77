//! A newest snapshot that is damaged on this node's disk is written anew.
//!
//! Nobody would find it by itself: the state is whole in memory, and the file is read only for a follower, which refuses it, or for who
//! saves it. In a group where nothing happens no snapshot is due that would take its place, and neither would ever get there.

use super::*;

impl<P: Platform, T: Transport> Group<P, T> {
    /// Looks at the newest snapshot, if it is the one of this digest, and writes another in its place unless it is what was
    /// written. Whether there is another now.
    pub(super) async fn mend_snapshot(&self, digest: [u8; 32]) -> ServiceResult<bool> {
        let newest = self.shared.current_snapshot().filter(|(_, file)| file.digest() == digest);
        let Some((index, file)) = newest else { return Ok(true) };
        let checked = self.platform.run_guest(move || file.check()).await;
        let checked = checked.ok_or_else(|| self.error(ErrorCode::Internal, "a file job failed"))?;
        let Err(error) = checked else { return Ok(false) };
        tracing::error!(group = self.name, index, %error, "this snapshot is of no use to others; it is written anew");
        self.snapshot_but(Some(digest)).await?;
        Ok(true)
    }
}
