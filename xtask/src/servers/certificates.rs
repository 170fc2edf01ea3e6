//! Certificates for TLS servers, made on the spot by the `openssl` command.

use super::{ServerError, process};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Sections for each kind of certificate; complete, so that the machine's own defaults add nothing.
const CONFIG: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost,IP:127.0.0.1
[client]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
";

/// An authority of its own, and what it has signed: one certificate for the server (`localhost`, `127.0.0.1`) and one
/// for a client. All files are PEM, keys are unencrypted PKCS #8 on P-256, valid for 30 days.
#[derive(Debug, Clone)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// The authority's certificate, by which clients check the server.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("authority.crt")
    }

    /// The certificate with which a client may prove who it is: `CN=client`.
    pub fn client_certificate(&self) -> PathBuf {
        self.dir.join("client.crt")
    }

    /// The key of [`Certificates::client_certificate`].
    pub fn client_key(&self) -> PathBuf {
        self.dir.join("client.key")
    }

    pub(super) fn server_certificate(&self) -> PathBuf {
        self.dir.join("server.crt")
    }

    pub(super) fn server_key(&self) -> PathBuf {
        self.dir.join("server.key")
    }

    pub(super) fn make(parent: &Path) -> Result<Self, ServerError> {
        let dir = parent.join("certificates");
        let failed = |error| ServerError::io("the certificates could not be written", error);
        fs::create_dir(&dir).map_err(failed)?;
        fs::write(dir.join("openssl.cnf"), CONFIG).map_err(failed)?;
        let made = Self { dir };
        made.openssl("req -x509 -days 30 -extensions authority -out authority.crt", Some("authority"))?;
        for name in ["server", "client"] {
            made.openssl(&format!("req -out {name}.csr"), Some(name))?;
            let sign = "x509 -req -days 30 -CA authority.crt -CAkey authority.key -CAcreateserial -extfile openssl.cnf";
            made.openssl(&format!("{sign} -extensions {name} -in {name}.csr -out {name}.crt"), None)?;
        }
        Ok(made)
    }

    /// Runs one command in the folder; with a name, it makes a new key for that name too.
    fn openssl(&self, arguments: &str, new_key: Option<&str>) -> Result<(), ServerError> {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments.split(' ')).current_dir(&self.dir);
        if let Some(name) = new_key {
            openssl.args(
                "-config openssl.cnf -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1".split(' '),
            );
            openssl.args(["-keyout", &format!("{name}.key"), "-subj", &format!("/CN={name}")]);
        }
        process::output(&mut openssl).map(drop)
    }
}
