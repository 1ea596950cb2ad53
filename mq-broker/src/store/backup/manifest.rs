//! The content of a backup: each file with its length and checksum. One line with the version and a checksum
//! of the rest, then JSON.

use std::path::{Component, Path};

use mq_common::ids::Lsn;
use serde::{Deserialize, Serialize};

/// The first words of the first line, with the version.
const HEAD: &str = "hc-mq-backup 1";

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path relative to the backup's folder and to the data folder.
    pub path: String,
    /// Bytes in use; those after them are left out.
    pub bytes: u64,
    /// CRC-32C of those bytes.
    pub crc32c: u32,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of the broker.
    pub broker: String,
    /// The last entry of the checkpoint in it.
    pub lsn: Lsn,
    /// When it was taken, ms since 1970-01-01 UTC.
    pub taken_ms: u64,
    /// All files.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// The text of the file.
    pub(super) fn encode(&self) -> String {
        let body = serde_json::to_string_pretty(self).expect("numbers and names have a JSON form");
        format!("{HEAD} crc32c={:08x}\n{body}\n", crc32c::crc32c(body.as_bytes()))
    }

    /// Decodes it; the error says what is wrong.
    pub(super) fn decode(text: &str) -> Result<Self, String> {
        let (head, body) = text.split_once('\n').ok_or("is empty")?;
        let Some(checksum) = head
            .strip_prefix(HEAD)
            .and_then(|rest| rest.strip_prefix(" crc32c="))
        else {
            return Err(format!("begins `{head}`, this program reads `{HEAD}`"));
        };
        let body = body.strip_suffix('\n').unwrap_or(body);
        if format!("{:08x}", crc32c::crc32c(body.as_bytes())) != checksum {
            return Err("is damaged: its checksum does not fit".to_owned());
        }
        let manifest: Self = serde_json::from_str(body).map_err(|error| error.to_string())?;
        let leaves = |file: &&FileEntry| {
            let mut parts = Path::new(&file.path).components();
            file.path.is_empty() || parts.any(|part| !matches!(part, Component::Normal(_)))
        };
        match manifest.files.iter().find(leaves) {
            Some(file) => Err(format!(
                "names `{}`, which is outside of a data folder",
                file.path
            )),
            None => Ok(manifest),
        }
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(path: &str) -> Manifest {
        Manifest {
            broker: "a".to_owned(),
            lsn: Lsn(7),
            taken_ms: 1000,
            files: vec![FileEntry {
                path: path.to_owned(),
                bytes: 3,
                crc32c: 9,
            }],
        }
    }

    #[test]
    fn manifest_comes_back_and_no_damage_passes() {
        let text = manifest("journal/0000000000000001.journal").encode();
        assert_eq!(
            Manifest::decode(&text),
            Ok(manifest("journal/0000000000000001.journal"))
        );
        for at in 0..text.len() - 1 {
            let mut damaged = text.clone().into_bytes();
            damaged[at] ^= 1;
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(Manifest::decode(&damaged).is_err(), "byte {at}");
            assert!(Manifest::decode(&text[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in ["/etc/passwd", "../a", "a/../../b", ""] {
            let error = Manifest::decode(&manifest(path).encode()).unwrap_err();
            assert!(error.contains("outside"), "{error}");
        }
    }
}
