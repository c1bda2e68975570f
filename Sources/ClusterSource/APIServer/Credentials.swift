import Foundation

/// What one request says of us and asks of the server: everything of an `APIServerAccess` that can change, as it is now.
struct Credentials: Sendable, Equatable {
  /// A certificate with its private key, both as PEM.
  struct Identity: Sendable, Equatable {
    var certificate: [UInt8]
    var key: [UInt8]
  }

  /// PEM; nil: the system's.
  var authorities: [UInt8]?
  var identity: Identity?
  var token: String?
}

/// Access to the API server cannot be had: a file is not there, a program fails. Never contains what is secret.
struct AccessProblem: Error, Hashable, CustomStringConvertible {
  var description: String
  init(_ description: String) { self.description = description }
}

/// Reads credentials where they stand, each time they are needed: files are replaced by whoever rotates them. A program is
/// asked again once its answer has expired, or was refused.
actor CredentialReader {
  private let access: APIServerAccess
  private var granted: CredentialPlugin.Grant?
  /// All who need an answer wait for the same.
  private var asking: Task<CredentialPlugin.Grant, any Error>?
  private let now: @Sendable () -> Date

  init(_ access: APIServerAccess, now: @escaping @Sendable () -> Date = { Date() }) {
    (self.access, self.now) = (access, now)
  }

  func read() async throws -> Credentials {
    var credentials = Credentials()
    if case .authorities(let material) = access.trust {
      credentials.authorities = try material.read("certificate-authority")
    }
    if let certificate = access.certificate, let key = access.key {
      credentials.identity = .init(
        certificate: try certificate.read("client-certificate"), key: try key.read("client-key"))
    }
    switch access.token {
    case nil: break
    case .text(let text): credentials.token = text
    case .file(let path):
      let text = String(decoding: try APIServerAccess.Material.file(path).read("tokenFile"), as: UTF8.self)
      credentials.token = try Self.checked(text.trimmingCharacters(in: .whitespacesAndNewlines), "tokenFile: \(path)")
    case .plugin(let plugin):
      let grant = try await grant(of: plugin)
      credentials.token = try grant.token.map { try Self.checked($0, "exec: \(plugin.command)") }
      credentials.identity = grant.identity ?? credentials.identity
    }
    return credentials
  }

  /// The server did not take this: if it is what a program gave last, the program is asked again.
  func refused(_ credentials: Credentials) {
    guard let granted, credentials.token == granted.token else { return }
    guard granted.identity == nil || credentials.identity == granted.identity else { return }
    self.granted = nil
  }

  private func grant(of plugin: CredentialPlugin) async throws -> CredentialPlugin.Grant {
    if let granted, granted.expires.map({ now() < $0 }) ?? true { return granted }
    let task = asking ?? Task { [access] in try await plugin.ask(of: access) }
    asking = task
    defer { asking = nil }
    let grant = try await task.value
    granted = grant
    return grant
  }

  /// What stands in a header must not end it.
  private static func checked(_ token: String, _ place: String) throws -> String {
    guard !token.isEmpty else { throw AccessProblem("\(place): holds no token") }
    guard token.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f }) else {
      throw AccessProblem("\(place): the token has characters that no token has")
    }
    return token
  }
}

extension APIServerAccess.Material {
  /// - Parameter field: what of a kubeconfig names the file, for the error.
  func read(_ field: String) throws -> [UInt8] {
    switch self {
    case .bytes(let bytes): return bytes
    case .file(let path):
      // Mounted secrets are links to folders that are exchanged: Foundation follows them.
      do { return Array(try Data(contentsOf: URL(fileURLWithPath: path))) } catch {
        throw AccessProblem("\(field): \(path): \(access(path, F_OK) == 0 ? "cannot be read" : "no such file")")
      }
    }
  }
}
