/// What can go wrong in a lab: always names the object, and what was tried with it.
public enum LabError: Error, Sendable, Equatable, CustomStringConvertible {
  /// The machine lacks something: root, a cgroup-v2 mount, a kernel feature.
  case machine(String)
  /// A program of ours is not where it should be.
  case missingBinary(path: String)
  /// A system call failed: what it was doing, to which object, `errno`.
  case system(operation: String, object: String, errno: Int32)
  /// A lab, node or pod of that name does not exist, or exists already.
  case unknown(kind: String, name: String)
  case exists(kind: String, name: String)
  /// A name, port or address in a spec that cannot be used.
  case invalid(field: String, value: String, reason: String)
  /// A process ended or stayed silent although it was expected to report.
  case process(name: String, reason: String)
  /// The plugin answered with an error: the command, the pod, and the answer as it was printed.
  case plugin(command: String, pod: String, answer: String)
  /// A manifest cannot be read: the file and the parser's words.
  case manifest(file: String, reason: String)
  /// Something did not come about in time.
  case timedOut(String)
  /// A signal asked to stop.
  case interrupted

  public var description: String {
    switch self {
    case .machine(let what): what
    case .missingBinary(let path): "\(path) does not exist or cannot be executed (make build, or --bin-dir)"
    case .system(let operation, let object, let code): "\(operation) \(object): \(errorText(code))"
    case .unknown(let kind, let name): "there is no \(kind) \(name)"
    case .exists(let kind, let name): "\(kind) \(name) exists already"
    case .invalid(let field, let value, let reason): "\(field) \"\(value)\": \(reason)"
    case .process(let name, let reason): "\(name): \(reason)"
    case .plugin(let command, let pod, let answer): "CNI \(command) of \(pod): \(answer)"
    case .manifest(let file, let reason): "\(file): \(reason)"
    case .timedOut(let what): "timed out: \(what)"
    case .interrupted: "interrupted"
    }
  }
}
