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
[elsewhere]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:elsewhere.invalid
[client]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
[signing]
database = index.txt
new_certs_dir = .
serial = serial
default_md = sha256
policy = any
[any]
commonName = supplied
";

/// What a server shows to its clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServerCertificate {
    /// For `localhost` and `127.0.0.1`, for 30 days from now.
    #[default]
    Valid,
    /// For the same names, in January 2020.
    Expired,
    /// For `elsewhere.invalid` only.
    OtherHost,
}

/// An authority of its own, and what it has signed: one certificate for the server (see [`ServerCertificate`]) and one
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

    /// The certificate of an authority that has signed nothing here: with it a client trusts somebody else.
    pub fn other_authority(&self) -> PathBuf {
        self.dir.join("other.crt")
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

    pub(super) fn make(parent: &Path, server: ServerCertificate) -> Result<Self, ServerError> {
        let dir = parent.join("certificates");
        let failed = |error| ServerError::io("the certificates could not be written", error);
        fs::create_dir(&dir).map_err(failed)?;
        fs::write(dir.join("openssl.cnf"), CONFIG).map_err(failed)?;
        let made = Self { dir };
        fs::write(made.dir.join("index.txt"), "").map_err(failed)?;
        fs::write(made.dir.join("serial"), "01\n").map_err(failed)?;
        for name in ["authority", "other"] {
            let sign = format!("req -x509 -days 30 -extensions authority -out {name}.crt");
            made.openssl(&sign, Some(name))?;
        }
        let server = match server {
            ServerCertificate::Valid => "-days 30 -extensions server",
            ServerCertificate::Expired => {
                "-startdate 20200101000000Z -enddate 20200201000000Z -extensions server"
            }
            ServerCertificate::OtherHost => "-days 30 -extensions elsewhere",
        };
        for (name, how) in [("server", server), ("client", "-days 30 -extensions client")] {
            made.openssl(&format!("req -out {name}.csr"), Some(name))?;
            let sign = "ca -batch -notext -config openssl.cnf -name signing -cert authority.crt -keyfile authority.key";
            made.openssl(&format!("{sign} {how} -in {name}.csr -out {name}.crt"), None)?;
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
