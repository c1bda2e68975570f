import ArgumentParser
import LocalAPI

/// Which policies are in force here, what they let through and what they stopped.
struct PolicyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "policy", abstract: "Network policies as this node enforces them.",
    discussion: "Packets are first packets of flows, and those judged anew after a change; not all that went through.",
    subcommands: [PolicyList.self, PolicyGet.self, PolicyDiff.self], defaultSubcommand: PolicyList.self,
    aliases: ["np"])
}

struct PolicyList: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "list", abstract: "Every policy with its counters.")
  @OptionGroup var options: GlobalOptions
  @OptionGroup var namespaces: NamespaceOptions

  func run() throws {
    let answer = try options.answer("/v1/policies", [("namespace", namespaces.wanted)])
    Output.list(answer, options, name: PolicyText.name, table: PolicyText.list)
  }
}

struct PolicyGet: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "get", abstract: "One policy, rule by rule: NAMESPACE/NAME.")
  @OptionGroup var options: GlobalOptions
  @Option(name: .shortAndLong, help: "The namespace of a name that has none.") var namespace = "default"
  @Argument(help: "NAMESPACE/NAME, or NAME.") var policy: String

  func run() throws {
    guard let (namespace, name) = qualifiedName(policy, in: namespace) else {
      throw ValidationError("'\(policy)': write NAMESPACE/NAME")
    }
    let answer = try options.answer("/v1/policies", [("namespace", namespace), ("name", name)])
    guard let item = answer["items"]?.arrayValue?.first else {
      Dpctl.complain("dpctl: there is no policy \(namespace)/\(name)")
      throw ExitCode(1)
    }
    switch options.output {
    case .table, .wide: print(PolicyText.detail(item, withHeaders: !options.noHeaders))
    default: Output.list(answer, options, name: PolicyText.name, table: PolicyText.list)
    }
  }
}

struct PolicyDiff: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "diff", abstract: "Objects against agent against kernel. Nothing, and status 0, when all agree.")
  @OptionGroup var options: GlobalOptions

  func run() throws { try Output.differences(try options.answer("/v1/policies/diff"), options) }
}
