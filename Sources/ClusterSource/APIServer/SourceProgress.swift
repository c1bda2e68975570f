import KubernetesObjects
import Synchronization

/// How far an API server's objects have been taken in: what `kubectl get` shows as an object's resourceVersion can be compared.
public final class SourceProgress: Sendable {
  private let reached = Mutex<[String: String]>([:])

  public init() {}

  /// Of each kind, by its plural, the newest version of which everything has been told, and handled by whom it was told to.
  public var resourceVersions: [String: String] { reached.withLock { $0 } }

  func note(_ kind: ObjectKind, _ version: String) { reached.withLock { $0[kind.plural] = version } }
}
