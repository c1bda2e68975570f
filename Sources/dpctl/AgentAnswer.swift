import ArgumentParser
import LocalAPI

extension GlobalOptions {
  /// The agent's answer to a GET. A wrong argument, in the agent's words, ends the program with 2; an agent that cannot
  /// answer with 3, like one that is not there, so that 1 always is an answer: denied, or different.
  func answer(_ path: String, _ parameters: [(key: String, value: String?)] = []) throws -> JSONValue {
    do {
      let (status, body) = try client.request("GET", AgentPath.query(path, parameters))
      guard status == 200 else { throw refusal(status, UnixHTTPClient.message(in: body), path) }
      return try JSONValue(parsing: body)
    } catch let error as JSONError {
      Dpctl.complain("dpctl: \(socket): \(path): the answer is no JSON: \(error)")
      throw ExitCode(3)
    } catch let error as LocalAPIError {
      throw failure(error)
    }
  }

  /// Says why the agent refused and gives the status to end with.
  func refusal(_ status: Int, _ message: String, _ path: String) -> ExitCode {
    let silent = "the agent answered \(path) with status \(status); is it of another version?"
    Dpctl.complain("dpctl: \(message.isEmpty ? silent : Terminal.printable(message))")
    return ExitCode((400..<500).contains(status) ? 2 : 3)
  }

  /// Says why there is no answer and gives the status to end with.
  func failure(_ error: LocalAPIError) -> ExitCode {
    Dpctl.complain("dpctl: \(error)")
    let status = ExitStatus.of(error)
    return ExitCode(status == 1 ? 3 : status)
  }
}

/// Which namespaces a list is about.
struct NamespaceOptions: ParsableArguments {
  @Option(name: .shortAndLong, help: "Only this namespace.") var namespace: String?
  @Flag(name: [.customShort("A"), .long], help: "All namespaces (the default).") var allNamespaces = false

  /// nil for all.
  var wanted: String? { allNamespaces ? nil : namespace }
}

/// `NAMESPACE/NAME`, or a name in `defaultNamespace`; nil where it is neither.
func qualifiedName(_ text: String, in defaultNamespace: String) -> (namespace: String, name: String)? {
  let parts = text.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
  guard parts.count <= 2, parts.allSatisfy({ !$0.isEmpty }) else { return nil }
  return parts.count == 2 ? (parts[0], parts[1]) : (defaultNamespace, parts[0])
}

extension JSONValue {
  /// The member where it is there and not null. (A closure's `nil` would itself be a JSON null.)
  func present(_ key: String) -> JSONValue? {
    guard let value = self[key], !value.isNull else { return nil }
    return value
  }
}
